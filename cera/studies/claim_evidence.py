"""The number that a claim's test is about, with its interval, from the summary of a study or a benchmark's results.

Each method is taken at its own best rate, as the study selects it. Sums are paired by seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from scipy import stats

from cera.foreign_files import FileError, read_json_object
from cera.studies.claims import ClaimTest
from cera.studies.correlation import Over, correlation
from cera.studies.estimates import Estimate, from_seeds, method_mean, weighted_sum
from cera.studies.rate_robustness import loss_over_rates
from cera.studies.selection import LEVEL, Results, combination, finite, student
from cera.studies.state import ENDED
from cera.studies.summary import Summary

CORRELATIONS: dict[Over, tuple[str, str, str]] = {
    "across": ("bootstrap of methods", "each at its best rate", "fewer than four methods have both metrics"),
    "within": (
        "Student",
        "mean of the methods' correlations over rates and seeds",
        "no method has four runs with both metrics",
    ),
}
"""How the interval of a correlation is made, what it is over, and what is said where there is none."""


@dataclass(frozen=True)
class Evidence:
    """What there is for a test.

    Attributes:
        estimate: The number with its interval; ``None`` if there is none.
        unit: What it is a sample of: seeds, methods or repetitions.
        method: How the interval is made.
        notes: At which rates, and what a reader must know, each a few words.
        says_nothing: Why the number decides nothing, such as that no method can do the task; empty if it may.
    """

    estimate: Estimate | None
    unit: str
    method: str
    notes: tuple[str, ...] = ()
    says_nothing: str = ""


def not_run(test: ClaimTest, summary: Summary) -> list[str]:
    """Return the methods or patterns of a test of which a summary has no run that has ended or failed."""
    begun = {run.method for run in summary.runs if run.state in (*ENDED, "failed")}
    return [pattern for pattern in test.weights if not any(fnmatchcase(method, pattern) for method in begun)]


def evidence(test: ClaimTest, summary: Summary) -> Evidence:
    """Return what a summary says of a test."""
    if test.kind == "robustness":
        return _robustness(test, summary)
    if test.kind == "correlation":
        return _correlation(test, summary)
    terms, notes = [], []
    for pattern, weight in test.weights.items():
        method, note = _best(summary, pattern)
        notes.append(note)
        if method is None:
            return Evidence(None, "seeds", "", tuple(notes))
        terms.append((method, summary.choice(method).value, weight))
    estimate = _less(weighted_sum(summary, terms, test.metrics[0], test.log), test.against)
    if estimate is None:
        notes.append(f"no seed has {test.metrics[0]} of all methods")
    over_problems = estimate is not None and estimate.problems is not None
    how = "bootstrap of seeds and problems" if over_problems else "Student"
    return Evidence(estimate, "seeds", how, tuple(notes), _at_floor(test, summary, terms))


def _at_floor(test: ClaimTest, summary: Summary, terms: Sequence[tuple[str, str | None, float]]) -> str:
    """Return that no method is above the floor of a test, or nothing if one is."""
    means = [method_mean(summary, method, label, test.metrics[0]) for method, label, _ in terms]
    known = [mean.mean for mean in means if mean is not None]
    if test.floor is None or not known or max(known) > test.floor:
        return ""
    return f"no method is above the floor of {test.floor:g}, the best has {max(known):.3g}"


def _less(estimate: Estimate | None, number: float) -> Estimate | None:
    """Return an estimate with Student's interval, less a number; its p-value becomes that of the new zero."""
    if estimate is None or number == 0:
        return estimate
    mean = estimate.mean - number
    if estimate.low is None or estimate.high is None:
        return replace(estimate, mean=mean)
    low, high = estimate.low - number, estimate.high - number
    freedom = estimate.seeds - 1
    error = (high - low) / 2 / float(stats.t.ppf((1 + LEVEL) / 2, freedom))
    statistic = abs(mean) / error if error else math.inf if mean else 0.0
    return replace(estimate, mean=mean, low=low, high=high, p_value=float(2 * stats.t.sf(statistic, freedom)))


def _best(summary: Summary, pattern: str) -> tuple[str | None, str]:
    """Return the method of a pattern that the selection's metric finds best, and a note on its rate."""
    matching = [method for method in summary.methods if fnmatchcase(method, pattern)]
    if not matching:
        return None, f"{pattern}: the study has no such method"
    choices = {method: choice for method in matching if (choice := summary.choice(method)).value is not None}
    if not choices:
        return None, f"{pattern}: at no rate have all seeds a result"
    selection = summary.selection
    if len(choices) == 1 or selection is None:
        method = next(iter(choices))
    else:
        means = {m: _mean(summary.search_results(m)[str(choices[m].value)]) for m in choices}
        method = (min if selection.goal == "min" else max)(means, key=means.__getitem__)
    choice, of = choices[method], f", best of {len(matching)}" if len(matching) > 1 else ""
    missing = len(matching) - len(choices)
    edge = {None: "", "only": ", the only rate"}.get(choice.edge, f", the {choice.edge} of its grid")
    incomplete = f", {missing} without a complete rate" if missing else ""
    return method, f"{method}{of}{incomplete} at {choice.value}{edge}" if choice.value else f"{method}{of}"


def _mean(results: Results) -> float:
    return math.fsum(finite(results).values()) / len(finite(results))


# Robustness


def _robustness(test: ClaimTest, summary: Summary) -> Evidence:
    """Return the weighted sum of the loss that methods lose over the same grid of rates, by seed."""
    lost = {method: loss_over_rates(summary, method) for method in test.weights}
    notes = [f"{method}: {each.diverged} runs diverged" for method, each in lost.items() if each.diverged]
    grids = {each.rates for each in lost.values()}
    rates = next(iter(grids))
    if len(grids) != 1 or len(rates) < 3:
        return Evidence(None, "seeds", "", (*notes, "the methods do not have the same three rates or more"))
    estimate = from_seeds(
        combination(
            [
                ({seed: lost[method].above_best(seed) for seed in lost[method].seeds}, weight)
                for method, weight in test.weights.items()
            ]
        )
    )
    if estimate is None:
        return Evidence(None, "seeds", "", (*notes, "no seed has a result at all rates of all methods"))
    return Evidence(estimate, "seeds", "Student", (*notes, f"{len(rates)} rates from {rates[0]:g} to {rates[-1]:g}"))


# Correlation


def _correlation(test: ClaimTest, summary: Summary) -> Evidence:
    """Return Spearman's correlation of two metrics: of methods at their best rates, or of the runs within each."""
    (pattern,), (first, second) = test.weights, test.metrics
    over: Over = "across" if test.detail == "across" else "within"
    method, note, too_few = CORRELATIONS[over]
    estimate = correlation([summary], (first, second), over, pattern)
    return Evidence(estimate, "methods", method if estimate else "", (note if estimate else too_few,))


# Benchmarks


def benchmark_evidence(test: ClaimTest, path: Path) -> Evidence:
    """Return the mean logarithm of a benchmark's ratios, less what it is measured against; see ``log_ratio``."""
    estimate = log_ratio(path, str(test.detail))
    return Evidence(_less(estimate, test.against), "repetitions", "Student", ("on one machine",))


def log_ratio(path: Path, what: str) -> Estimate | None:
    """Return the mean logarithm of the ratios in one row of a benchmark's results, with its interval.

    Raises:
        FileError: The file has no such row.
    """
    content = read_json_object(path)
    rows = [row for row in content.get("rows", []) if isinstance(row, dict) and row.get("what") == what]
    if len(rows) != 1:
        raise FileError(f"{path} must have one row {what!r}, and has {len(rows)}.")
    return from_seeds(student([math.log(ratio) for ratio in rows[0]["ratios"]]))
