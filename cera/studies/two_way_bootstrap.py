"""Intervals of a mean over seeds and problems, both of which are samples: other seeds and problems, other means.

    scores = np.array([[1, 0, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]])  # (seeds, problems)
    two_way_bootstrap(scores).low

Seeds and problems are resampled with replacement, independently of each other (the pigeonhole bootstrap: Owen 2007,
The Annals of Applied Statistics 1(2)). Centred effects are first inflated by sqrt(n / (n - 1)), since n resampled
values vary less than n new ones. What is peculiar to a seed and a problem counts up to three times, which makes
intervals wider than need be; two or three seeds, which hardly tell how seeds vary, make them narrower. One seed, or one
problem, is not resampled: the interval is then over the other factor alone.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
"""Number of resamples."""

CHUNK = 500
"""Number of resamples at a time, which bounds the memory."""


class Bootstrapped(NamedTuple):
    """A mean with its percentile interval.

    Attributes:
        mean: Mean over seeds and problems.
        low: Lower end of the interval; ``None`` if there is one seed and one problem.
        high: Upper end.
        p_value: Two-sided p-value of a mean of zero, by the level at which the interval touches zero; at least
            ``2 / (RESAMPLES + 1)``. ``None`` where there is no interval.
    """

    mean: float
    low: float | None
    high: float | None
    p_value: float | None


def two_way_bootstrap(scores: np.ndarray, level: float = 0.95, seed: int = 0) -> Bootstrapped:
    """Return the mean of ``scores`` with its interval, always from the same resamples.

    For the difference of two methods, give the differences of their scores, paired by seed and problem.

    Args:
        scores: A number for each seed and problem, (seeds, problems).
        level: Confidence level, in (0, 1).
        seed: Seed of the resamples.

    Raises:
        ValueError: The scores are no matrix with a seed and a problem.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores must be (seeds, problems), got an array of shape {scores.shape}.")
    mean = float(scores.mean())
    if scores.size == 1:
        return Bootstrapped(mean, None, None, None)
    means = resampled_means(scores, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    tail = min((means <= 0).sum(), (means >= 0).sum())
    return Bootstrapped(mean, float(low), float(high), float(min(1.0, 2 * (tail + 1) / (RESAMPLES + 1))))


def resampled_means(scores: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the mean of each resample, (RESAMPLES,).

    Args:
        scores: A number for each seed and problem, (seeds, problems) fp64.
        seed: Seed of the resamples.
    """
    seeds, problems = scores.shape
    mean = scores.mean()
    by_seed, by_problem = scores.mean(axis=1) - mean, scores.mean(axis=0) - mean
    interaction = scores - mean - by_seed[:, None] - by_problem
    by_seed, by_problem = by_seed * _inflation(seeds), by_problem * _inflation(problems)
    means = []
    for seed_counts, problem_counts in zip(*_draws(seeds, problems, RESAMPLES, seed), strict=True):
        seed_shares, problem_shares = seed_counts / seeds, problem_counts / problems
        both = ((seed_shares @ interaction) * problem_shares).sum(axis=1)
        means.append(mean + seed_shares @ by_seed + problem_shares @ by_problem + both)
    return np.concatenate(means)


@lru_cache(maxsize=4)
def _draws(seeds: int, problems: int, resamples: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return how often each resample has each seed, and each problem, in chunks: (CHUNK, seeds), (CHUNK, problems)."""
    generator = np.random.default_rng(seed)
    counts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for start in range(0, resamples, CHUNK):
        for n, chunks in zip((seeds, problems), counts, strict=True):
            drawn = generator.multinomial(n, np.full(n, 1 / n), min(CHUNK, resamples - start))
            chunks.append(drawn.astype(np.uint16))
    return counts


def _inflation(n: int) -> float:
    return (n / (n - 1)) ** 0.5 if n > 1 else 1.0
