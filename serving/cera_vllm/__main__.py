"""``python -m cera_vllm`` is ``cera-serve``."""

import sys

from cera_vllm.server import main

sys.exit(main())
