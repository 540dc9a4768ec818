"""Confidence intervals of scores, and tests of the difference between two evaluations of the same problems.

Example:
    >>> bootstrap([1, 0, 1, 1]).low < 0.75 < bootstrap([1, 0, 1, 1]).high
    True
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

CHUNK = 2**22
"""Number of random indices drawn at a time, which bounds the memory of a resampling."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: Lower end.
        high: Upper end.
        level: Share of such intervals that contain the true value.
    """

    low: float
    high: float
    level: float


@dataclass(frozen=True)
class PairedDifference:
    """The difference between two evaluations of the same problems.

    Attributes:
        difference: Mean of the second minus that of the first.
        interval: Interval of the difference, by the paired bootstrap.
        p_value: Two-sided p-value of no difference, by the paired bootstrap.
    """

    difference: float
    interval: Interval
    p_value: float


@dataclass(frozen=True)
class McNemar:
    """Result of McNemar's exact test (1947): are the problems that only one solves evenly divided between the two?

    Attributes:
        only_a: Problems that only the first solves.
        only_b: Problems that only the second solves.
        p_value: Two-sided p-value of an even division.
    """

    only_a: int
    only_b: int
    p_value: float


def bootstrap(values: Any, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the interval of a mean over problems by resampling the problems (percentile bootstrap, Efron 1979).

    The samples of a problem are not resampled: their spread is part of the problem's score. If all scores are 0, or all
    are 1, resampling gives an interval of no width, as if nothing else could happen; Wilson's interval (1927) is
    returned instead. If all scores are the same number between 0 and 1, the interval has no width, as there is no share
    of problems to count.

    Args:
        values: Score of each problem in [0, 1], (problems,).
        level: Confidence level, in (0, 1).
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: A score or a setting is out of its range, or there are no scores.
    """
    scores = _scores("values", values)
    _check(level, resamples)
    if np.isin(scores, (0, 1)).all() and scores.min() == scores.max():
        return wilson(int(scores.sum()), len(scores), level)
    low, high = _quantiles(_resampled_means(scores, resamples, seed), level)
    return Interval(low, high, level)


def wilson(right: int, problems: int, level: float = 0.95) -> Interval:
    """Return Wilson's interval (1927) of a share.

    Args:
        right: Number of right problems.
        problems: Number of all problems, at least 1.
        level: Confidence level, in (0, 1).

    Raises:
        ValueError: A number is out of its range.
    """
    if not 0 <= right <= problems or problems < 1:
        raise ValueError(f"right must be in [0, problems] and problems at least 1, got {right} of {problems}.")
    _check(level)
    interval = stats.binomtest(right, problems).proportion_ci(level, method="wilson")
    return Interval(float(interval.low), float(interval.high), level)


def paired_bootstrap(a: Any, b: Any, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> PairedDifference:
    """Compare two means over the same problems by resampling problems together with both of their scores.

    If every problem differs by the same amount, the interval has no width; for few problems, ``mcnemar`` says more.

    Args:
        a: Score of each problem in the first evaluation, (problems,) in [0, 1].
        b: Score of each problem in the second, in the same order.
        level: Confidence level.
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: The two have different lengths, or as for ``bootstrap``.
    """
    first, second = _pair(a, b)
    _check(level, resamples)
    differences = second - first
    means = _resampled_means(differences, resamples, seed)
    low, high = _quantiles(means, level)
    # one is added to the count and to the resamples, since no p-value is 0 (Davison & Hinkley 1997)
    tail = min((means <= 0).sum(), (means >= 0).sum())
    p_value = min(1.0, 2 * (int(tail) + 1) / (resamples + 1))
    return PairedDifference(float(differences.mean()), Interval(low, high, level), p_value)


def mcnemar(a: Any, b: Any) -> McNemar:
    """Apply McNemar's exact test to two evaluations with one answer to each problem.

    Args:
        a: 1 for each problem that the first solves, else 0, (problems,).
        b: The same for the second, in the same order.

    Raises:
        ValueError: A score is neither 0 nor 1, or the two have different lengths.
    """
    first, second = _pair(a, b)
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise ValueError("McNemar's test takes scores of 0 and 1 only: one answer a problem.")
    only_a, only_b = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    discordant = only_a + only_b
    return McNemar(only_a, only_b, float(stats.binomtest(only_a, discordant).pvalue) if discordant else 1.0)


def _scores(name: str, values: Any) -> np.ndarray:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"{name} must be one score for each problem, got an array of shape {scores.shape}.")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"{name} must be scores in [0, 1], got {scores[~((scores >= 0) & (scores <= 1))][0]}.")
    return scores


def _pair(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    first, second = _scores("a", a), _scores("b", b)
    if len(first) != len(second):
        raise ValueError(f"a and b must be of the same problems, got {len(first)} and {len(second)} scores.")
    return first, second


def _check(level: float, resamples: int = 1) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}.")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return the mean of each resample, (resamples,)."""
    if len(values) == 1:  # which scipy refuses
        return np.full(resamples, values[0])
    resampled = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, CHUNK // len(values)),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return resampled.bootstrap_distribution


def _quantiles(means: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
