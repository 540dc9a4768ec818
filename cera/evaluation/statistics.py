"""How sure a score is, and whether two adapters differ on the same problems by more than chance."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

CHUNK = 2**22
"""Numbers drawn at a time."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        level: The share of such intervals that hold the true value.
    """

    low: float
    high: float
    level: float


@dataclass(frozen=True)
class PairedDifference:
    """Two evaluations of the same problems.

    Attributes:
        difference: Mean of the second less that of the first.
        interval: Of the difference, by the paired bootstrap.
        p_value: Of no difference, two-sided, by the paired bootstrap.
    """

    difference: float
    interval: Interval
    p_value: float


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test (1947): of the problems that one alone solves, is half each one's?

    Attributes:
        only_a: Problems that only the first solves.
        only_b: Problems that only the second solves.
        p_value: Two-sided.
    """

    only_a: int
    only_b: int
    p_value: float


def bootstrap(values: Any, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Interval of a mean over problems, by resampling the problems (percentile bootstrap, Efron 1979).

    Samples of a problem are not resampled: their spread is in the problem's score. Scores that are all 0 or all 1 would
    give an interval of no width, as if nothing else could happen; theirs is Wilson's (1927). Scores that are all the
    same number between 0 and 1 keep an interval of no width, as there is no share of problems to count.

    Args:
        values: Score of each problem in [0, 1], (problems,).
        level: Of confidence, in (0, 1).
        resamples: How many.
        seed: Of the resampling.

    Raises:
        ValueError: A score or a setting is out of its range, or there are none.
    """
    scores = _scores("values", values)
    _check(level, resamples)
    if np.isin(scores, (0, 1)).all() and scores.min() == scores.max():
        return wilson(int(scores.sum()), len(scores), level)
    low, high = _quantiles(_resampled_means(scores, resamples, seed), level)
    return Interval(low, high, level)


def wilson(right: int, problems: int, level: float = 0.95) -> Interval:
    """Wilson's interval (1927) of a share.

    Args:
        right: How many problems are right.
        problems: Of how many, at least 1.
        level: Of confidence, in (0, 1).

    Raises:
        ValueError: A number is out of its range.
    """
    if not 0 <= right <= problems or problems < 1:
        raise ValueError(f"right must be in [0, problems] and problems at least 1, got {right} of {problems}.")
    _check(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = right / problems
    centre = (share + z**2 / (2 * problems)) / (1 + z**2 / problems)
    half = z / (1 + z**2 / problems) * math.sqrt(share * (1 - share) / problems + z**2 / (4 * problems**2))
    low = centre - half if right > 0 else 0.0  # exactly, whatever rounding makes of it
    high = centre + half if right < problems else 1.0
    return Interval(low, high, level)


def paired_bootstrap(a: Any, b: Any, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> PairedDifference:
    """The difference of two means over the same problems, by resampling problems with both of their scores.

    If every problem differs by the same amount, the interval has no width: ``mcnemar`` says more of few problems.

    Args:
        a: Score of each problem, (problems,) in [0, 1].
        b: Likewise, in the same order.
        level: Of confidence.
        resamples: How many.
        seed: Of the resampling.

    Raises:
        ValueError: The two are not of the same length, or as for ``bootstrap``.
    """
    first, second = _pair(a, b)
    _check(level, resamples)
    differences = second - first
    means = _resampled_means(differences, resamples, seed)
    low, high = _quantiles(means, level)
    # how often chance alone lands on the other side of zero; one is added, as no p-value is 0 (Davison & Hinkley 1997)
    tail = min((means <= 0).sum(), (means >= 0).sum())
    return PairedDifference(
        float(differences.mean()), Interval(low, high, level), min(1.0, 2 * (int(tail) + 1) / (resamples + 1))
    )


def mcnemar(a: Any, b: Any) -> McNemar:
    """McNemar's exact test of two evaluations with one answer a problem.

    Args:
        a: 1 where the problem is solved, else 0, (problems,).
        b: Likewise, in the same order.

    Raises:
        ValueError: A score is neither 0 nor 1, or the two are not of the same length.
    """
    first, second = _pair(a, b)
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise ValueError("McNemar's test takes scores of 0 and 1 only: one answer a problem.")
    only_a, only_b = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    n, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(fewer + 1))
    return McNemar(only_a, only_b, min(1.0, 2 * tail / 2**n))


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
    generator = np.random.default_rng(seed)
    n = len(values)
    at_a_time = max(1, CHUNK // n)
    sizes = [min(at_a_time, resamples - start) for start in range(0, resamples, at_a_time)]
    return np.concatenate([values[generator.integers(n, size=(size, n))].mean(axis=1) for size in sizes])


def _quantiles(means: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
