"""Means of a method and differences between methods, with the intervals that the measured values allow.

A value with a score for each problem, such as an accuracy, is a mean over seeds and problems, both of which are
resampled (``cera.studies.two_way_bootstrap``). Any other value, such as a perplexity, is one number for each seed, and
has Student's interval. The p-value of a difference of accuracies is the larger of two: that of the same bootstrap, and
that of a randomization test over the problems.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cera.evaluation.statistics import randomization_test
from cera.studies.selection import Results, SeedDifference, combination, finite, t_interval
from cera.studies.summary import Summary
from cera.studies.two_way_bootstrap import two_way_bootstrap


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of two.

    Attributes:
        mean: The mean over the seeds.
        low: Lower end of its 95% interval; ``None`` where there is none.
        high: Upper end.
        p_value: Two-sided p-value, of a difference only; ``None`` where there is none.
        seeds: Number of seeds.
        problems: Number of problems that were resampled, too; ``None`` of Student's interval.
    """

    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    seeds: int
    problems: int | None = None


def from_seeds(found: SeedDifference | None) -> Estimate | None:
    """Return a mean over independent values, with Student's interval, as an estimate."""
    return None if found is None else Estimate(found.mean, found.low, found.high, found.p_value, found.seeds)


def method_mean(summary: Summary, method: str, label: str | None, metric: str) -> Estimate | None:
    """Return a method's mean over the seeds.

    Args:
        summary: The study.
        method: The method.
        label: Value of the selected axis, ``""`` if there is none selected; ``None`` if no value could be chosen.
        metric: What is averaged.

    Returns:
        ``None`` if no seed has a value.
    """
    seeds = finite(_results(summary, method, label, metric))
    if not seeds:
        return None
    mean = statistics.fmean(seeds.values())
    scores = _by_problem(summary, [(method, label)], metric)
    if scores and scores[0].keys() == seeds.keys():
        found = two_way_bootstrap(np.stack(list(scores[0].values())))
        return Estimate(mean, found.low, found.high, None, *np.shape(list(scores[0].values())))
    low, high = t_interval(list(seeds.values())) or (None, None)
    return Estimate(mean, low, high, None, len(seeds))


def method_difference(
    summary: Summary, first: tuple[str, str | None], second: tuple[str, str | None], metric: str
) -> Estimate | None:
    """Return the difference of two methods, second minus first, paired by seed and, if there are any, by problem.

    Args:
        summary: The study.
        first: A method, and the value of the selected axis; see ``method_mean``.
        second: The same of another one.
        metric: What is compared.

    Returns:
        ``None`` if they share no seed with a value.
    """
    return weighted_sum(summary, [(*first, -1.0), (*second, 1.0)], metric)


def weighted_sum(
    summary: Summary, terms: Sequence[tuple[str, str | None, float]], metric: str, log: bool = False
) -> Estimate | None:
    """Return a weighted sum of methods' values, paired by seed and, if there are any, by problem.

    Args:
        summary: The study.
        terms: Of each method its name, the value of the selected axis (see ``method_mean``) and its weight.
        metric: What is summed.
        log: Whether the logarithm of each run's value is summed instead; values must be positive.

    Returns:
        ``None`` if the methods share no seed with a value.
    """
    values = [_results(summary, method, label, metric) for method, label, _ in terms]
    if log:
        values = [{seed: math.log(value) for seed, value in finite(results).items()} for results in values]
    weights = [weight for *_, weight in terms]
    paired = combination(list(zip(values, weights, strict=True)))
    if paired is None:
        return None
    scores = [] if log else _by_problem(summary, [(method, label) for method, label, _ in terms], metric)
    if scores:
        shared = sorted(set.intersection(*(set(by_seed) for by_seed in scores)))
        if len(shared) == paired.seeds:
            sums = np.stack(
                [sum(w * by_seed[seed] for w, by_seed in zip(weights, scores, strict=True)) for seed in shared]
            )
            found = two_way_bootstrap(sums)
            # where few problems differ, a bootstrap alone calls chance significant
            p_value = max(found.p_value or 0.0, randomization_test(sums.mean(axis=0)))
            return Estimate(paired.mean, found.low, found.high, p_value, *sums.shape)
    return from_seeds(paired)


def _results(summary: Summary, method: str, label: str | None, metric: str) -> Results:
    return {} if label is None else summary.results(method, metric).get(label, {})


def _by_problem(
    summary: Summary, methods: Sequence[tuple[str, str | None]], metric: str
) -> list[dict[str, np.ndarray]]:
    """Return each method's scores by problem, by seed; empty unless all of their runs were asked the same problems."""
    asked, scores = set(), []
    for method, label in methods:
        by_seed = {}
        for seed, run in summary.runs_by_seed(method, label or "").items():
            for name, solved in run.problems.items():
                values = solved.metric(metric.removeprefix(f"{name}_")) if metric.startswith(f"{name}_") else None
                if values is not None:
                    asked.add(solved.problems)
                    by_seed[seed] = values
        scores.append(by_seed)
    return scores if len(asked) == 1 and all(scores) else []
