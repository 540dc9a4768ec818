"""The best linear stand-in for a finished CeRA adapter: ``python -m cera.linearize RUN_OR_ADAPTER_DIR``."""

import sys

from cera.linearize.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
