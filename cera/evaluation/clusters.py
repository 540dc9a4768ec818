"""Confidence intervals of means over tokens, where the tokens of a problem belong together (cluster bootstrap).

Tokens of one answer are not independent, so whole problems are resampled, each with all of its tokens. The mean of a
resample is the sum over its tokens divided by their number: long answers weigh more, as they do in a loss.

Example:
    >>> tokens = ClusterBootstrap([0, 0, 1, 1, 1])  # the problem of each token
    >>> tokens.interval([1.0, 2.0, 4.0, 4.0, 4.0])
    Interval(low=1.5, high=4.0, level=0.95)
"""

from typing import Any

import numpy as np

from cera.evaluation.statistics import Interval


class ClusterBootstrap:
    """Resamples problems with replacement; all intervals of one object are from the same resamples.

    Args:
        problems: The problem of each token, (tokens,) of any integers.
        level: Confidence level, in (0, 1).
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: There are no tokens, or a setting is out of its range.
    """

    def __init__(self, problems: Any, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> None:
        problems = np.asarray(problems)
        if problems.ndim != 1 or len(problems) == 0:
            raise ValueError(f"problems must be one number for each token, got an array of shape {problems.shape}.")
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1), got {level}.")
        if resamples < 1:
            raise ValueError(f"resamples must be at least 1, got {resamples}.")
        names, self.problems = np.unique(problems, return_inverse=True)
        self.level = level
        # how often each resample has each problem, (resamples, problems)
        generator = np.random.default_rng(seed)
        self._times = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), resamples).astype(float)

    def mean(self, values: Any, where: Any = None) -> float:
        """Return the mean over tokens; see ``interval`` for the arguments."""
        sums, counts = self._by_problem(values, where)
        return float(sums.sum() / counts.sum())

    def interval(self, values: Any, where: Any = None) -> Interval:
        """Return the percentile interval (Efron 1979) of the mean over tokens.

        For a paired difference, give the tokens' differences. A resample without any of the chosen tokens has no mean
        and is left out.

        Args:
            values: A number for each token, (tokens,).
            where: Which tokens count, (tokens,) bool; ``None`` takes all.

        Raises:
            ValueError: The values are not one for each token, or no token is chosen.
        """
        sums, counts = self._by_problem(values, where)
        totals = self._times @ counts
        means = (self._times @ sums)[totals > 0] / totals[totals > 0]
        low, high = np.quantile(means, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Interval(float(low), float(high), self.level)

    def _by_problem(self, values: Any, where: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the sum and the number of the chosen tokens of each problem, both (problems,)."""
        values = np.asarray(values, dtype=np.float64)
        chosen = np.ones(len(self.problems), bool) if where is None else np.asarray(where, bool)
        if values.shape != self.problems.shape or chosen.shape != self.problems.shape:
            raise ValueError(f"one value for each of {len(self.problems)} tokens is expected, got {values.shape}.")
        if not chosen.any():
            raise ValueError("where must choose at least one token.")
        number = self._times.shape[1]
        counts = np.bincount(self.problems[chosen], minlength=number)
        return np.bincount(self.problems[chosen], values[chosen], number), counts.astype(float)
