"""Measures how much an adapter depends on its learning rate (paper Section 4.4, Fig. 2), over the runs of a study.

    own, runs = read_study("runs/smol_cera")
    for robustness in robustness_by_adapter(runs).values():
        print(robustness.label, robustness.spread)

The runs of a study share data, model and recipe (``FinishedRun.identity``) and differ in adapter, learning rate and
seed. Runs that differ only in the seed are replicates.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from cera.runs.finished import FinishedRun, RunError, find_runs, labels, siblings

TOLERANCE = 0.01
"""A learning rate counts as good if its final perplexity exceeds that of the best by at most this share."""


@dataclass(frozen=True)
class Curve:
    """Validation perplexity over one run.

    Attributes:
        perplexity: Finite values by number of optimizer steps.
        state: ``running`` includes runs that were abandoned.
    """

    perplexity: dict[int, float]
    state: Literal["ended", "running", "diverged"]


@dataclass(frozen=True)
class Robustness:
    """One adapter over the learning rates that it was trained with.

    A learning rate at which any replicate diverged has no final perplexity. Runs that have not ended only have curves.

    Attributes:
        label: Name of the adapter.
        curves: Curves of all replicates by learning rate (ascending).
        final_perplexity: Mean over the replicates by learning rate (ascending).
        divergences: Number of runs that diverged.
    """

    label: str
    curves: dict[float, list[Curve]]
    final_perplexity: dict[float, float]
    divergences: int

    @property
    def diverged(self) -> list[float]:
        """Learning rates at which a run diverged."""
        return [lr for lr, curves in self.curves.items() if any(curve.state == "diverged" for curve in curves)]

    @property
    def best(self) -> float | None:
        """Learning rate with the lowest final perplexity."""
        return min(self.final_perplexity, key=self.final_perplexity.__getitem__, default=None)

    @property
    def spread(self) -> float | None:
        """Highest minus lowest final perplexity: infinite if a learning rate diverged.

        ``None`` for fewer than two learning rates that ended or diverged.
        """
        finals = self.final_perplexity.values()
        return self._unless_diverged(max(finals) - min(finals) if len(finals) > 1 else None)

    @property
    def area_over_rates(self) -> float | None:
        """Final perplexity above that of the best, averaged over the logarithm of the learning rate.

        Infinite if a learning rate diverged; ``None`` for fewer than two learning rates that ended or diverged.
        """
        finals = self.final_perplexity
        if len(finals) < 2:
            return self._unless_diverged(None)
        return self._unless_diverged(mean_above_lowest(list(finals), list(finals.values())))

    @property
    def area_between_curves(self) -> float | None:
        """Distance between the highest and the lowest curve, averaged over the steps, in units of perplexity.

        Infinite if a learning rate diverged. ``None`` for fewer than two learning rates that ended or diverged, or if
        their curves share no steps.
        """
        curves = [[c.perplexity for c in self.curves[lr] if c.state == "ended"] for lr in self.final_perplexity]
        return self._unless_diverged(mean_distance(curves))

    def _unless_diverged(self, value: float | None) -> float | None:
        """Return ``value``, or infinity if one of several learning rates diverged: to leave it out would be a gain."""
        several = len(self.final_perplexity) + len(self.diverged) > 1
        return math.inf if self.diverged and several else value

    @property
    def share_within(self) -> float | None:
        """Share of the learning rates whose final perplexity is within 1% of the best, in [0, 1].

        Learning rates that diverged count as outside. ``None`` for fewer than two learning rates that ended or
        diverged.
        """
        total = len(self.final_perplexity) + len(self.diverged)
        if total < 2:
            return None
        limit = (1 + TOLERANCE) * min(self.final_perplexity.values(), default=math.inf)
        return sum(perplexity <= limit for perplexity in self.final_perplexity.values()) / total


def mean_above_lowest(rates: Sequence[float], values: Sequence[float]) -> float:
    """Return how far values lie above the lowest of them, averaged over the logarithm of the rate; 0 of a single one.

    It is the area under the line through them, divided by the range of log rates, so that it does not depend on where
    rates lie close together.

    Args:
        rates: Learning rates, ascending.
        values: A value for each.
    """
    if len(rates) < 2:
        return 0.0
    logs, heights = np.log(rates), np.array(values)
    return float(np.trapezoid(heights - heights.min(), logs) / np.ptp(logs))


def read_study(path: str | Path) -> tuple[FinishedRun, list[FinishedRun]]:
    """Read the run in ``path``, and all runs of its study that lie beside it, itself included.

    Raises:
        RunError: There is no run in ``path``.
    """
    run = FinishedRun.read(path)
    return run, [sibling for sibling in siblings(path) if sibling.identity.study == run.identity.study]


def find_studies(path: Path, visit: Callable[[list[Path]], Iterable[Path]] = iter) -> list[list[FinishedRun]]:
    """Read all studies in a directory of runs, or the study of a run; those without any validation are left out.

    Args:
        path: The directory.
        visit: See ``cera.runs.finished.find_runs``.

    Raises:
        RunError: There is no run, or no run has a validation perplexity.
    """
    runs = read_study(path)[1] if (path / "config.yaml").exists() else find_runs(path, visit)
    if not runs:
        raise RunError(f"{path} is no run directory and contains none.")
    studies: dict[str, list[FinishedRun]] = {}
    for run in runs:
        studies.setdefault(run.identity.study, []).append(run)
    validated = [study for study in studies.values() if any(run.curve("val/perplexity") for run in study)]
    if not validated:
        raise RunError(f"{path}: no run has a validation perplexity yet.")
    return validated


def robustness_by_adapter(runs: Iterable[FinishedRun]) -> dict[str, Robustness]:
    """Return the adapters of one study by ``FinishedRun.identity.adapter``, ordered by name and rank."""
    runs = sorted(runs, key=lambda run: (run.adapter, run.rank or 0, run.learning_rate))
    results = {}
    for adapter, label in labels(runs).items():
        curves: dict[float, list[Curve]] = {}
        for run in runs:
            if run.identity.adapter == adapter:
                curves.setdefault(run.learning_rate, []).append(_curve(run))
        finals = {}
        for learning_rate, replicates in curves.items():
            last = [c.perplexity[max(c.perplexity)] for c in replicates if c.state == "ended"]
            if last and not any(c.state == "diverged" for c in replicates):
                finals[learning_rate] = sum(last) / len(last)
        divergences = sum(c.state == "diverged" for replicates in curves.values() for c in replicates)
        results[adapter] = Robustness(label, curves, finals, divergences)
    return results


def grid_notes(results: Iterable[Robustness]) -> list[str]:
    """Return a sentence for each way in which the learning rates of a study's adapters are not alike."""
    results = list(results)
    notes = []
    if len({tuple(result.curves) for result in results}) > 1:
        notes.append("the adapters were not trained at the same learning rates, so their figures do not compare.")
    for result in results:
        ratios = np.diff(np.log(list(result.curves)))
        if len(ratios) > 1 and np.ptp(ratios) > 0.2 * ratios.max():
            notes.append(f"{result.label}: learning rates are unevenly spaced, and `within 1%` counts rates.")
        missing = [lr for lr in result.curves if lr not in result.final_perplexity and lr not in result.diverged]
        if missing:
            rates = ", ".join(map(format_learning_rate, missing))
            notes.append(f"{result.label}: no run at {rates} has ended, so its figures are without.")
        if len({len(replicates) for replicates in result.curves.values()}) > 1:
            notes.append(f"{result.label}: some learning rates have more replicates than others.")
    return notes


def _curve(run: FinishedRun) -> Curve:
    values = run.curve("val/perplexity")
    finite = {step: values[step] for step in sorted(values) if math.isfinite(values[step])}
    if run.divergence:
        return Curve(finite, "diverged")
    return Curve(finite, "ended" if finite and run.finished else "running")


def mean_distance(curves: Sequence[Sequence[dict[int, float]]]) -> float | None:
    """Return the distance between the highest and the lowest curve, averaged over the steps that all curves cover.

    It is exact for piecewise linear curves, including where they cross.

    Args:
        curves: The curves of each learning rate's replicates, which are averaged; values by ascending step.

    Returns:
        The distance in units of the values; ``None`` for fewer than two learning rates or without common steps.
    """
    replicate_curves = [curve for replicates in curves for curve in replicates]
    start, end = max(map(min, replicate_curves), default=0), min(map(max, replicate_curves), default=0)
    if len(curves) < 2 or start >= end:
        return None

    def interpolate(steps: np.ndarray) -> np.ndarray:
        """Return the mean curve of each learning rate, (learning rates, steps)."""
        means = [[np.interp(steps, list(c), list(c.values())) for c in replicates] for replicates in curves]
        return np.stack([np.mean(replicates, axis=0) for replicates in means])

    steps = np.unique([start, end, *(step for curve in replicate_curves for step in curve if start < step < end)])
    crossings = []
    for first, second in combinations(interpolate(steps), 2):
        gap = first - second
        before = np.flatnonzero(gap[:-1] * gap[1:] < 0)
        share = gap[before] / (gap[before] - gap[before + 1])
        crossings.extend(steps[before] + share * np.diff(steps)[before])
    steps = np.unique([*steps, *crossings])
    distance = np.ptp(interpolate(steps), axis=0)
    return float(np.sum(np.diff(steps) * (distance[1:] + distance[:-1]) / 2) / (end - start))


def format_learning_rate(learning_rate: float) -> str:
    """Format a learning rate as papers do: 1e-4, 3.5e-4."""
    mantissa, exponent = f"{learning_rate:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
