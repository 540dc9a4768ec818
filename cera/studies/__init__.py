"""Studies: many runs from one file, and comparisons over finished runs.

- ``study``: a file of axes -> runs -> a choice for each method -> a report (``cera study``).
- ``compare``: all adapters on the same data and budget, side by side (``cera compare-adapters``).
- ``lr_robustness``: dependence on the learning rate, paper Section 4.4 and Fig. 2 (``cera lr-robustness``).
"""

from cera.extras import require

require("cera.studies", "train")
