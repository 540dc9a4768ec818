"""Comparisons over finished runs, read from their run directories.

- ``compare``: all adapters on the same data and budget, side by side (``cera compare-adapters``).
- ``lr_robustness``: dependence on the learning rate, paper Section 4.4 and Fig. 2 (``cera lr-robustness``).
"""

from cera.extras import require

require("cera.studies", "studies")
