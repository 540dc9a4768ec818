"""Effective rank and AUC-90 of finished adapters, side by side: ``python -m cera.spectral RUN_OR_ADAPTER_DIR ...``."""

import sys

from cera.spectral.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
