"""Confidence intervals of scores, and tests of the difference between two evaluations of the same problems.

Scores of 0 and 1 have exact or nearly exact methods, which are used for them: Wilson's interval for a mean, Newcombe's
for a difference. All other scores are resampled (bootstrap). The test of a difference is exact for all scores.

Example:
    >>> mean_interval([1, 0, 1, 1]).low < 0.75 < mean_interval([1, 0, 1, 1]).high
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
        interval: Interval of the difference.
        p_value: Two-sided p-value of no difference, by ``randomization_test``.
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


def mean_interval(values: Any, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the interval of a mean over problems: Wilson's if all scores are 0 or 1, else by ``bootstrap``.

    See ``bootstrap`` for the arguments and errors.
    """
    scores = _scores("values", values)
    if _binary(scores):
        return wilson(int(scores.sum()), len(scores), level)
    return bootstrap(scores, level, resamples, seed)


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
    if _binary(scores) and scores.min() == scores.max():
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


def paired_difference(a: Any, b: Any, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> PairedDifference:
    """Compare two means over the same problems; the interval is Newcombe's if all scores are 0 or 1, else resampled.

    See ``paired_bootstrap`` for the arguments and errors.
    """
    first, second = _pair(a, b)
    if not (_binary(first) and _binary(second)):
        return paired_bootstrap(first, second, level, resamples, seed)
    _check(level)
    p_value = mcnemar(first, second).p_value
    return PairedDifference(float((second - first).mean()), newcombe(first, second, level), p_value)


def paired_bootstrap(a: Any, b: Any, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> PairedDifference:
    """Compare two means over the same problems; the interval is from resampling problems with both of their scores.

    If few problems differ, the interval is too narrow; if every problem differs by the same amount, it has no width.
    The p-value is that of ``randomization_test``, which holds for any number of problems.

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
    low, high = _quantiles(_resampled_means(differences, resamples, seed), level)
    p_value = randomization_test(differences, resamples, seed)
    return PairedDifference(float(differences.mean()), Interval(low, high, level), p_value)


def randomization_test(differences: Any, resamples: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value of Fisher's paired randomization test (1935) of no difference.

    If it did not matter which of the two evaluations a problem's scores are from, each difference would have either
    sign with the same probability. The p-value is the probability that random signs give a sum at least as far from 0.
    It is exact if at most ``log2(resamples)`` differences are not 0, or if they all have the same magnitude, where the
    test is McNemar's; otherwise signs are drawn, and one is added to both counts (Davison & Hinkley 1997).

    Args:
        differences: Difference of each problem's scores, (problems,).
        resamples: Number of random signs of all differences.
        seed: Seed of the signs.
    """
    nonzero = np.asarray(differences, dtype=np.float64)
    nonzero = nonzero[nonzero != 0]
    count, magnitudes = len(nonzero), np.abs(nonzero)
    if count == 0:
        return 1.0
    if np.ptp(magnitudes) <= 1e-12:
        return float(stats.binomtest(int((nonzero > 0).sum()), count).pvalue)
    least = abs(nonzero.sum()) * (1 - 1e-12)  # the tolerance counts sums that differ by rounding only
    if 2**count <= resamples:
        signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        return float((np.abs(signs @ magnitudes) >= least).mean())
    generator, extreme, step = np.random.default_rng(seed), 0, max(1, CHUNK // count)
    for start in range(0, resamples, step):
        positive = generator.random((min(step, resamples - start), count)) < 0.5
        extreme += int((np.abs(2 * (positive @ magnitudes) - magnitudes.sum()) >= least).sum())
    return (extreme + 1) / (resamples + 1)


def newcombe(a: Any, b: Any, level: float = 0.95) -> Interval:
    """Return Newcombe's interval (1998, method 10) of the difference of two shares of the same problems, b - a.

    It combines Wilson's intervals of the two shares, with their correlation over the problems.

    Args:
        a: 1 for each problem that the first solves, else 0, (problems,).
        b: The same for the second, in the same order.
        level: Confidence level, in (0, 1).

    Raises:
        ValueError: A score is neither 0 nor 1, or the two have different lengths.
    """
    first, second = _binary_pair(a, b)
    n = len(first)
    both, neither = int((first + second == 2).sum()), int((first + second == 0).sum())
    only_a, only_b = int((first > second).sum()), int((second > first).sum())
    covariance = float(both * neither - only_a * only_b)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0)  # Newcombe's continuity correction
    margins = (both + only_a) * (neither + only_b) * (both + only_b) * (neither + only_a)
    correlation = covariance / margins**0.5 if margins else 0.0
    share_a, share_b = (both + only_a) / n, (both + only_b) / n
    interval_a, interval_b = wilson(both + only_a, n, level), wilson(both + only_b, n, level)

    def distance(x: float, y: float) -> float:
        return max(x**2 - 2 * correlation * x * y + y**2, 0.0) ** 0.5

    low = share_b - share_a - distance(share_b - interval_b.low, interval_a.high - share_a)
    high = share_b - share_a + distance(interval_b.high - share_b, share_a - interval_a.low)
    return Interval(low, high, level)


def mcnemar(a: Any, b: Any) -> McNemar:
    """Apply McNemar's exact test to two evaluations with one answer to each problem.

    Args:
        a: 1 for each problem that the first solves, else 0, (problems,).
        b: The same for the second, in the same order.

    Raises:
        ValueError: A score is neither 0 nor 1, or the two have different lengths.
    """
    first, second = _binary_pair(a, b)
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


def _binary_pair(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    first, second = _pair(a, b)
    if not (_binary(first) and _binary(second)):
        raise ValueError("scores must be 0 and 1 only: one answer a problem.")
    return first, second


def _binary(scores: np.ndarray) -> bool:
    return bool(np.isin(scores, (0, 1)).all())


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
