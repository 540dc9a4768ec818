"""``python -m cera``: the console script ``cera``, for launchers such as torchrun that take a module."""

import sys

from cera.cli.main import main

sys.exit(main())
