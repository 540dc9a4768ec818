"""Measures how often the 95% intervals of an evaluation hold the true value, over simulated evaluations.

    python scripts/interval_coverage.py

prints the table of ``docs/evaluation.md``. Each problem has a chance of its own of being solved, drawn from a beta
distribution (a + b = 2) with the given mean; a sample is right with this chance.
"""

import numpy as np

from cera.cli.tables import table
from cera.evaluation.statistics import mean_interval

EVALUATIONS = 2000
RESAMPLES = 1000
LEVEL = 0.95


def coverage(mean: float, problems: int, samples: int, generator: np.random.Generator) -> float:
    """Return the share of simulated evaluations whose interval holds ``mean``."""
    held = 0
    for seed in range(EVALUATIONS):
        chances = generator.beta(2 * mean, 2 * (1 - mean), problems)
        scores = generator.binomial(samples, chances) / samples
        interval = mean_interval(scores, LEVEL, RESAMPLES, seed)
        held += interval.low <= mean <= interval.high
    return held / EVALUATIONS


def main() -> None:
    """Print the table."""
    generator = np.random.default_rng(0)
    sizes = [(problems, samples) for problems in (100, 200, 1319) for samples in (1, 4)]
    rows = [
        [
            f"{problems}",
            f"{samples}",
            *(coverage(mean, problems, samples, generator) for mean in (0.01, 0.03, 0.1, 0.5)),
        ]
        for problems, samples in sizes
    ]
    headers = ["problems", "samples", *(f"score {mean}" for mean in (0.01, 0.03, 0.1, 0.5))]
    print(table(rows, headers, ["", "", *[".3f"] * 4], style="markdown"))


if __name__ == "__main__":
    main()
