"""Statistics of a study: each method at its own best value of an axis, intervals over seeds, families of comparisons.

choice = choose({"lr1e-4": {"seed0": 3.9, "seed1": 4.0}, "lr3e-4": {"seed0": None, "seed1": 3.7}}, {}, "min")
choice.value, choice.excluded  # "lr1e-4", ["lr3e-4"]: a run that diverged or failed counts against its value
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scipy import stats

Results = Mapping[str, float | None]
"""Result by seed; ``None`` or a number that is not finite for a run that diverged, failed or has not ended."""

LEVEL = 0.95
"""Confidence level of all intervals."""


@dataclass(frozen=True)
class Choice:
    """The value of an axis at which a method is best.

    Attributes:
        value: Its label; ``None`` if there is no value at which all seeds have a result.
        edge: ``"lowest"`` or ``"highest"`` if the value is the first or the last of its grid, so that a better one may
            lie beyond it; ``"only"`` if the grid has one value.
        excluded: Labels of values at which a seed has no result.
    """

    value: str | None
    edge: Literal["lowest", "highest", "only"] | None
    excluded: list[str]


class SeedDifference(NamedTuple):
    """The difference between two methods over the seeds that both have, second minus first, or another weighted sum.

    Attributes:
        mean: Mean over the seeds.
        low: Lower end of its interval; ``None`` for one seed.
        high: Upper end.
        p_value: Two-sided p-value of Student's paired test; ``None`` for one seed.
        seeds: Number of seeds.
    """

    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    seeds: int


def choose(
    results: Mapping[str, Results],
    numbers: Mapping[str, float],
    goal: Literal["min", "max"] = "min",
    search_seeds: Collection[str] = (),
) -> Choice:
    """Return the value whose mean over the seeds is best; of equals the first.

    A value at which any seed diverged, failed or has not ended is not chosen: a mean over the others would reward it.

    Args:
        results: Result by seed, by the label of the value.
        numbers: The values that are numbers, by label; only a grid of numbers has edges.
        goal: Whether the lowest or the highest mean is best.
        search_seeds: The seeds over which means are compared, which all values must have; all if empty. A value at
            which another seed diverged is not chosen either.
    """
    means = {
        label: statistics.fmean(finite(seeds)[seed] for seed in search_seeds or seeds)
        for label, seeds in results.items()
        if complete(seeds) and seeds.keys() >= set(search_seeds)
    }
    excluded = [label for label in results if label not in means]
    if not means:
        return Choice(None, None, excluded)
    sign = 1 if goal == "min" else -1
    best = min(means, key=lambda label: sign * means[label])
    if not results.keys() <= numbers.keys():
        return Choice(best, None, excluded)
    grid = sorted(results, key=numbers.__getitem__)
    if len(grid) == 1:
        return Choice(best, "only", excluded)
    edges: dict[str, Literal["lowest", "highest"]] = {grid[0]: "lowest", grid[-1]: "highest"}
    return Choice(best, edges.get(best), excluded)


def complete(seeds: Results) -> bool:
    """Return whether there are results, and every seed has one."""
    return len(seeds) > 0 and len(finite(seeds)) == len(seeds)


def finite(seeds: Results) -> dict[str, float]:
    """Return the results of the seeds that have one."""
    return {seed: value for seed, value in seeds.items() if value is not None and math.isfinite(value)}


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's interval of the mean of a normal population; ``None`` for fewer than two values."""
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    mean = statistics.fmean(values)
    return mean - half, mean + half


def difference(first: Results, second: Results) -> SeedDifference | None:
    """Compare two methods, paired by seed; ``None`` if they share no seed with a result.

    Args:
        first: Result of each seed of the first method.
        second: The same of the second.
    """
    return combination([(first, -1.0), (second, 1.0)])


def combination(terms: Sequence[tuple[Results, float]]) -> SeedDifference | None:
    """Return a weighted sum of methods' results over the seeds that all have; ``None`` if there is no such seed.

    Args:
        terms: Result of each seed, and its weight, by method; a difference has the weights -1 and 1.
    """
    known = [(finite(results), weight) for results, weight in terms]
    shared = set.intersection(*(set(results) for results, _ in known))
    sums = [sum(weight * results[seed] for results, weight in known) for seed in sorted(shared)]
    return student(sums)


def student(values: Sequence[float]) -> SeedDifference | None:
    """Return the mean of independent values with Student's interval and test of zero; ``None`` without a value."""
    if not values:
        return None
    mean, interval = statistics.fmean(values), t_interval(values)
    if interval is None:
        return SeedDifference(mean, None, None, None, 1)
    error = statistics.stdev(values) / math.sqrt(len(values))
    statistic = abs(mean) / error if error else math.inf if mean else 0.0
    p_value = float(2 * stats.t.sf(statistic, len(values) - 1))
    return SeedDifference(mean, *interval, p_value, len(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for a family of tests (Holm 1979), in the same order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted
