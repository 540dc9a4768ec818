"""Whether one measured value predicts another: rank correlations over runs, across methods and within them.

    correlation([summary], ("effective_rank", "held_out_perplexity"), "across")

Spearman's, of the values of one study or of several that train the same base on the same task. The three ways answer
three questions:

- ``across``: do methods with a higher value have a higher other one, each at its own best rate?
- ``within``: do the runs of one method, over its rates and seeds? (The mean of the methods' correlations.)
- ``runs``: do runs, whatever their method? It mixes the other two, and is what a plot of all runs shows.

A run that two studies share counts once.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

import numpy as np
from scipy import stats

from cera.studies.estimates import Estimate, from_seeds
from cera.studies.selection import LEVEL, student
from cera.studies.summary import RunSummary, Summary
from cera.studies.two_way_bootstrap import RESAMPLES

Over = Literal["across", "within", "runs"]

FEWEST = 4
"""Smallest number of points that have a correlation here."""


@dataclass(frozen=True)
class MethodPoints:
    """The two values of a method's runs.

    Attributes:
        study: Name of the study.
        method: The method.
        runs: Of each run that has both values, (runs, 2).
        best: Their means over the seeds at the method's best rate, (2,); ``None`` without such a rate.
    """

    study: str
    method: str
    runs: np.ndarray
    best: np.ndarray | None


def correlation(
    summaries: Sequence[Summary], metrics: tuple[str, str], over: Over, pattern: str = "*"
) -> Estimate | None:
    """Return the rank correlation of two metrics, with a 95% interval that takes methods as the sample.

    Args:
        summaries: The studies.
        metrics: The two values of a run, either of which may be ``parameters``.
        over: See above. The interval is Student's ``within`` methods, and a bootstrap of methods otherwise.
        pattern: The methods that count.

    Returns:
        The estimate, whose ``seeds`` is the number of methods; ``None`` if there are too few for it, or if a metric has
        two values alone, which tell two groups apart rather than an order.

    Raises:
        ValueError: ``over`` is no such way.
    """
    if over not in get_args(Over):
        raise ValueError(f"over must be one of {', '.join(get_args(Over))}, got {over!r}.")
    methods = list(method_points(summaries, metrics, pattern))
    if over == "across":
        return _bootstrapped([each.best[None] for each in methods if each.best is not None])
    if over == "runs":
        return _bootstrapped([each.runs for each in methods if len(each.runs)])
    varied = [each.runs for each in methods if len(each.runs) >= FEWEST and np.ptp(each.runs, axis=0).min() > 0]
    return from_seeds(student([float(_spearman(runs[None])[0]) for runs in varied]))


def method_points(summaries: Sequence[Summary], metrics: tuple[str, str], pattern: str = "*") -> Iterator[MethodPoints]:
    """Yield the points of each method of studies, without those runs that an earlier study has with the same values.

    A method of whose runs at the best rate an earlier study has one has no ``best``.
    """
    seen: set[tuple[float, float]] = set()
    for summary in summaries:
        for method in (method for method in summary.methods if fnmatchcase(method, pattern)):
            runs = [run for run in summary.runs if run.method == method]
            points = {run.name: point for run in runs if (point := _point(run, metrics)) is not None}
            new = {name: point for name, point in points.items() if point not in seen}
            label = summary.choice(method).value
            names = {run.name for run in summary.runs_by_seed(method, label).values()} if label is not None else set()
            at_best = [new[name] for name in sorted(names & new.keys())]
            complete = at_best and len(at_best) == len(names & points.keys())
            best = np.mean(at_best, axis=0) if complete else None
            yield MethodPoints(summary.study, method, np.array(list(new.values())).reshape(-1, 2), best)
            seen |= set(new.values())


def _point(run: RunSummary, metrics: tuple[str, str]) -> tuple[float, float] | None:
    values = {"parameters": run.parameters, **run.values} if run.state == "finished" else {}
    first, second = (values.get(metric) for metric in metrics)
    if first is None or second is None or not math.isfinite(first) or not math.isfinite(second):
        return None
    return float(first), float(second)


def _bootstrapped(methods: Sequence[np.ndarray]) -> Estimate | None:
    """Return the correlation of all methods' points, with percentile interval and p-value; always the same.

    Args:
        methods: The points of each, (points, 2); methods are resampled with all of their points.
    """
    if len(methods) < FEWEST or min(len(np.unique(each)) for each in np.concatenate(methods).T) < 3:
        return None
    generator = np.random.default_rng(0)
    if all(len(points) == 1 for points in methods):
        drawn = generator.integers(len(methods), size=(RESAMPLES, len(methods)))
        correlations = _spearman(np.concatenate(methods)[drawn])
    else:  # samples differ in size, so that each is ranked by itself, which is slow
        drawn = generator.integers(len(methods), size=(RESAMPLES // 10, len(methods)))
        correlations = np.array([_spearman(np.concatenate([methods[i] for i in each])[None])[0] for each in drawn])
    correlations = correlations[np.isfinite(correlations)]
    low, high = np.quantile(correlations, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    tail = min((correlations <= 0).sum(), (correlations >= 0).sum())
    p_value = float(min(1.0, 2 * (tail + 1) / (len(correlations) + 1)))
    known = float(_spearman(np.concatenate(methods)[None])[0])
    return Estimate(known, float(low), float(high), p_value, len(methods))


def _spearman(points: np.ndarray) -> np.ndarray:
    """Return the rank correlation of each sample, (samples, n, 2) to (samples,); nan where a metric is constant."""
    ranks = stats.rankdata(points, axis=1)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    squares = (ranks**2).sum(axis=1).prod(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(ranks.prod(axis=2).sum(axis=1) / np.sqrt(squares))
