"""What each factor of a factorial study does: main effects, interactions of two, and a path of single changes.

    factors = {"adapter": ["identity", "silu"], "scale": ["a32", "s1"]}
    for effect in effects(summary, factors, "effective_rank", log=True):
        print(effect.name, effect.estimate)

Each method is taken at its own best value of the selected axis, and sums are paired by seed.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cera.studies.axes import StudyError
from cera.studies.estimates import Estimate, weighted_sum
from cera.studies.selection import holm
from cera.studies.summary import Summary

Cell = tuple[str, ...]
"""A level of each factor."""


@dataclass(frozen=True)
class Effect:
    """What a change of levels does to a metric, averaged over the other factors.

    Attributes:
        name: Which change, such as ``adapter: silu less identity``.
        estimate: Its size with its interval; ``None`` if the methods share no seed with a value.
        adjusted: P-value of Holm over the effects that are returned together; ``None`` without one.
    """

    name: str
    estimate: Estimate | None
    adjusted: float | None = None


def effects(summary: Summary, factors: Mapping[str, Sequence[str]], metric: str, log: bool = False) -> list[Effect]:
    """Return the main effects of the factors, and all interactions of two.

    A main effect is the mean over all cells with a level, less that over all with the factor's first level. An
    interaction is how much such a difference changes between a level of another factor and that factor's first.

    Args:
        summary: The study.
        factors: Labels by axis; the study has one method for each combination, whose other labels are all the same.
        metric: What is compared.
        log: Whether its logarithm is.

    Raises:
        StudyError: A factor has fewer than two levels, or a combination has no method or several.
    """
    cells = _methods_by_cell(summary, factors)
    names = list(factors)
    contrasts: dict[str, dict[str, float]] = {}
    for name in names:
        first, *others = factors[name]
        for level in others:
            contrasts[f"{name}: {level} less {first}"] = _contrast(cells, names, {name: (first, level)})
    for one, other in itertools.combinations(names, 2):
        (first, *levels), (other_first, *other_levels) = factors[one], factors[other]
        for level, other_level in itertools.product(levels, other_levels):
            changes = {one: (first, level), other: (other_first, other_level)}
            name = f"{one}: {level} less {first}, at {other}: {other_level} less {other_first}"
            contrasts[name] = _contrast(cells, names, changes)
    return _estimated(summary, contrasts, metric, log)


def path(summary: Summary, methods: Sequence[str], metric: str, log: bool = False) -> list[Effect]:
    """Return the difference between each method and the one before it, and last that between the two ends.

    The differences add up to the last one, where all methods have the same seeds. What a step of a path is depends on
    those before it, unless factors do not interact.

    Args:
        summary: The study.
        methods: The methods from one end to the other.
        metric: What is compared.
        log: Whether its logarithm is.
    """
    pairs = [*itertools.pairwise(methods), (methods[0], methods[-1])]
    contrasts = {f"{first} to {second}": {first: -1.0, second: 1.0} for first, second in pairs}
    return _estimated(summary, contrasts, metric, log)


def _methods_by_cell(summary: Summary, factors: Mapping[str, Sequence[str]]) -> dict[Cell, str]:
    for name, levels in factors.items():
        if name not in summary.axes or len(levels) < 2:
            raise StudyError(
                f"a factor must be an axis of {summary.study} with two labels or more, got {name}: {levels}."
            )
    cells: dict[Cell, str] = {}
    for cell in itertools.product(*factors.values()):
        labels = dict(zip(factors, cell, strict=True))
        runs = [run for run in summary.runs if labels.items() <= run.labels.items()]
        methods = list(dict.fromkeys(run.method for run in runs))
        if len(methods) != 1:
            raise StudyError(
                f"{summary.study} must have one method with {labels}, and has {', '.join(methods) or 'none'}."
            )
        cells[cell] = methods[0]
    return cells


def _contrast(
    cells: Mapping[Cell, str], names: Sequence[str], changes: Mapping[str, tuple[str, str]]
) -> dict[str, float]:
    """Return the weight of each method in a difference of levels, or in a difference of such differences."""
    weights = {}
    for cell, method in cells.items():
        weight = 1.0
        for name, (first, level) in changes.items():
            weight *= {first: -1.0, level: 1.0}.get(cell[names.index(name)], 0.0)
        if weight:
            weights[method] = weight
    number = len(weights) / 2 ** len(changes)
    return {method: weight / number for method, weight in weights.items()}


def _estimated(summary: Summary, contrasts: Mapping[str, Mapping[str, float]], metric: str, log: bool) -> list[Effect]:
    estimates = {}
    for name, weights in contrasts.items():
        terms = [(method, summary.choice(method).value, weight) for method, weight in weights.items()]
        estimates[name] = weighted_sum(summary, terms, metric, log)
    tested = {n: e.p_value for n, e in estimates.items() if e is not None and e.p_value is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [Effect(name, estimate, adjusted.get(name)) for name, estimate in estimates.items()]
