"""How much an adapter depends on its learning rate (paper Section 4.4, Fig. 2), from the runs of a study.

    python -m cera.studies.lr_robustness runs              # every study in a directory of runs
    python -m cera.studies.lr_robustness runs/smol_cera    # the study that a run belongs to

The runs of a study have data, model and recipe in common (``Run.identity``) and differ in adapter, learning rate and
seed; runs that differ in the seed alone are replicates.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cera.runs.checkpoints import replacing
from cera.runs.finished import Run, RunError, find_runs, labels, siblings

WITHIN = 0.01
"""A learning rate counts as good if its final perplexity is at most this share above that of the best."""

PANELS = 11
"""Most learning rates that get a panel of their own."""

LOG_FROM = 4
"""Perplexities whose largest is over this many times the smallest are drawn on a log scale."""


@dataclass(frozen=True)
class Curve:
    """Validation perplexity over a run.

    Attributes:
        perplexity: By optimizer steps done; what is not finite is left out.
        state: ``running`` also stands for a run that was given up.
    """

    perplexity: dict[int, float]
    state: Literal["ended", "running", "diverged"]


@dataclass(frozen=True)
class Robustness:
    """One adapter over the learning rates that it was trained with.

    A learning rate at which any replicate diverged has no final perplexity. Runs that have not ended only have curves.

    Attributes:
        label: The adapter's name.
        curves: Of every replicate, by learning rate (ascending).
        final_perplexity: By learning rate (ascending); the mean over the replicates.
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
        """The learning rate of the lowest final perplexity."""
        return min(self.final_perplexity, key=self.final_perplexity.__getitem__, default=None)

    @property
    def spread(self) -> float | None:
        """Worst minus best final perplexity; ``None`` for fewer than two learning rates that have one."""
        finals = self.final_perplexity.values()
        return max(finals) - min(finals) if len(finals) > 1 else None

    @property
    def area_between_curves(self) -> float | None:
        """Distance between the highest and the lowest curve, averaged over the steps, in units of perplexity.

        ``None`` for fewer than two learning rates with a final perplexity, or if their curves share no steps.
        """
        return mean_distance(
            [[c.perplexity for c in self.curves[lr] if c.state == "ended"] for lr in self.final_perplexity]
        )

    @property
    def share_within(self) -> float | None:
        """Share of the learning rates whose final perplexity is within 1% of the best, in [0, 1].

        Those that diverged are not. ``None`` for fewer than two learning rates that ended, well or not.
        """
        total = len(self.final_perplexity) + len(self.diverged)
        if total < 2:
            return None
        limit = (1 + WITHIN) * min(self.final_perplexity.values(), default=math.inf)
        return sum(perplexity <= limit for perplexity in self.final_perplexity.values()) / total


def study_of(path: str | Path) -> tuple[Run, list[Run]]:
    """The run in ``path``, and all runs beside it that belong to its study, itself included.

    Raises:
        RunError: There is no run in ``path``.
    """
    own = Run.read(path)
    return own, [run for run in siblings(path) if run.identity[0] == own.identity[0]]


def compare(runs: Iterable[Run]) -> dict[str, Robustness]:
    """The adapters of one study, by ``Run.identity[1]``, in the order of their names and ranks."""
    runs = sorted(runs, key=lambda run: (run.adapter, run.rank or 0, run.learning_rate))
    found = {}
    for adapter, label in labels(runs).items():
        curves: dict[float, list[Curve]] = {}
        for run in runs:
            if run.identity[1] == adapter:
                curves.setdefault(run.learning_rate, []).append(_curve(run))
        finals = {}
        for learning_rate, replicates in curves.items():
            last = [c.perplexity[max(c.perplexity)] for c in replicates if c.state == "ended"]
            if last and not any(c.state == "diverged" for c in replicates):
                finals[learning_rate] = sum(last) / len(last)
        divergences = sum(c.state == "diverged" for replicates in curves.values() for c in replicates)
        found[adapter] = Robustness(label, curves, finals, divergences)
    return found


def _curve(run: Run) -> Curve:
    values = run.curve("val/perplexity")
    finite = {step: values[step] for step in sorted(values) if math.isfinite(values[step])}
    if run.divergence:
        return Curve(finite, "diverged")
    return Curve(finite, "ended" if finite and run.finished else "running")


def mean_distance(curves: Sequence[Sequence[dict[int, float]]]) -> float | None:
    """Distance between the highest and the lowest of some curves, averaged over the steps that all of them cover.

    Exact for curves that are straight between their points, also where they cross.

    Args:
        curves: For each learning rate its replicates' curves, of which the mean is taken; value by step, ascending.

    Returns:
        In units of the values; ``None`` for fewer than two learning rates, or if no steps are common to all.
    """
    every = [curve for replicates in curves for curve in replicates]
    start, end = max(map(min, every), default=0), min(map(max, every), default=0)
    if len(curves) < 2 or start >= end:
        return None

    def at(steps: np.ndarray) -> np.ndarray:
        """Values (curves, steps)."""
        means = [[np.interp(steps, list(c), list(c.values())) for c in replicates] for replicates in curves]
        return np.stack([np.mean(replicates, axis=0) for replicates in means])

    steps = np.unique([start, end, *(step for curve in every for step in curve if start < step < end)])
    crossings = []
    for one, other in combinations(at(steps), 2):
        gap = one - other
        before = np.flatnonzero(gap[:-1] * gap[1:] < 0)
        share = gap[before] / (gap[before] - gap[before + 1])
        crossings.extend(steps[before] + share * np.diff(steps)[before])
    steps = np.unique([*steps, *crossings])
    distance = np.ptp(at(steps), axis=0)
    return float(np.sum(np.diff(steps) * (distance[1:] + distance[:-1]) / 2) / (end - start))


# Fig. 2


def figure(results: Iterable[Robustness]) -> Figure:
    """Validation perplexity against step, a panel for each learning rate; then final perplexity against learning rate.

    All panels of curves have one scale, that of the trained models which did not diverge; the base, before the first
    step, may lie above it. Of more than ``PANELS`` learning rates some get a panel, evenly chosen.
    """
    results = list(results)
    every = sorted({lr for r in results for lr, curves in r.curves.items() if any(c.perplexity for c in curves)})
    chosen = [every[round(i)] for i in np.linspace(0, len(every) - 1, min(len(every), PANELS))]
    count = len(chosen) + 1
    columns = count if count <= 4 else min((4, 3), key=lambda columns: -count % columns)  # fewest empty places
    rows = math.ceil(count / columns)
    made = Figure(figsize=(3.1 * columns + 0.4, 2.7 * rows + 0.6), layout="constrained")
    panels = [made.add_subplot(rows, columns, index) for index in range(1, count + 1)]
    for panel in panels:
        panel.grid(visible=True, alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for panel, learning_rate in zip(panels[:-1], chosen, strict=True):
        _draw_curves(panel, results, learning_rate)
    for panel in panels[:-1:columns]:
        panel.set_ylabel("Validation perplexity")
    _draw_finals(panels[-1], results)
    _add_legend(made, results)
    if len(chosen) < len(every):
        made.suptitle(f"{len(chosen)} of {len(every)} learning rates", fontsize="medium")
    return made


def _draw_curves(panel: Axes, results: list[Robustness], learning_rate: float) -> None:
    curves = [(f"C{i}", curve) for i, r in enumerate(results) for curve in r.curves.get(learning_rate, [])]
    low, high = _window(panel, results)
    for color, curve in curves:
        steps, values = list(curve.perplexity), list(curve.perplexity.values())
        panel.plot(steps, values, "--" if curve.state == "running" else "-", marker=".", color=color)
        if curve.state == "diverged" and steps:
            panel.plot(steps[-1], min(max(values[-1], low), high), "x", color=color, markersize=8, clip_on=False)
    bases = [curve.perplexity[0] for _, curve in curves if 0 in curve.perplexity]
    if bases and max(bases) > high:
        base = f"base: {max(bases):,.5g}"
        panel.text(1, 0.98, base, transform=panel.transAxes, ha="right", va="top", fontsize="small")
    last = max(step for r in results for of in r.curves.values() for curve in of for step in curve.perplexity) or 1
    panel.set_xlim(-0.03 * last, 1.03 * last)
    panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    panel.set_title(f"Learning rate {as_text(learning_rate)}", fontsize="medium")
    panel.set_xlabel("Training step")


def _window(panel: Axes, results: list[Robustness]) -> tuple[float, float]:
    """Set the panel's range of perplexities so that an untrained or diverged model does not squash the others."""
    curves = [curve for r in results for replicates in r.curves.values() for curve in replicates]
    bases = [curve.perplexity[0] for curve in curves if 0 in curve.perplexity]
    points = [(step, p) for c in curves if c.state != "diverged" for step, p in c.perplexity.items() if step > 0]
    trained = [p for _, p in points] or bases or [p for curve in curves for p in curve.perplexity.values()]
    log = _scale(panel, trained)
    to, back = (math.log, math.exp) if log else (float, float)
    low, high = to(min(trained)), to(max(trained))
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 0.06
    base = to(max(bases, default=max(trained)))
    if base - low <= 4 * (high - low) or len({step for step, _ in points}) < 2:
        top = max(base, high) + margin
    else:  # with the base, less than a quarter of the panel would be left to all others: its value is written there
        top = high + 2.5 * margin
    panel.set_ylim(back(low - margin), back(top))
    return panel.get_ylim()


def _draw_finals(panel: Axes, results: list[Robustness]) -> None:
    for index, result in enumerate(results):
        finals = result.final_perplexity
        panel.plot(list(finals), list(finals.values()), "-", marker="o", markersize=4, color=f"C{index}")
        height = 0.97 - 0.06 * sum(bool(earlier.diverged) for earlier in results[:index])
        panel.plot(
            result.diverged, [height] * len(result.diverged), "x", color=f"C{index}", markersize=8,
            transform=panel.get_xaxis_transform(),
        )  # fmt: skip
    _scale(panel, [perplexity for r in results for perplexity in r.final_perplexity.values()])
    every = sorted({lr for r in results for lr in (*r.final_perplexity, *r.diverged)})
    panel.set_xscale("log")
    panel.margins(x=0.1)
    if len(every) == 1:
        panel.set_xlim(every[0] / 2, every[0] * 2)
    if len(every) <= 6:
        panel.set_xticks(every, [as_text(lr) for lr in every], rotation=45 if len(every) > 3 else 0)
        panel.xaxis.set_minor_locator(NullLocator())
    if not any(r.final_perplexity for r in results):
        panel.set_yticks([])
    panel.set_title("After training", fontsize="medium")
    panel.set_xlabel("Learning rate")
    panel.set_ylabel("Final validation perplexity")


def _scale(panel: Axes, perplexities: list[float]) -> bool:
    """Make the perplexity axis logarithmic if they differ by orders of magnitude; whether it is."""
    log = max(perplexities, default=1) > LOG_FROM * min(perplexities, default=1)
    if log:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        panel.yaxis.set_minor_locator(NullLocator())
    return log


def _add_legend(made: Figure, results: list[Robustness]) -> None:
    states = {curve.state for r in results for curves in r.curves.values() for curve in curves}
    handles = [Line2D([], [], color=f"C{index}", label=r.label) for index, r in enumerate(results)]
    if "running" in states:
        handles.append(Line2D([], [], color="grey", linestyle="--", label="not ended"))
    if "diverged" in states:
        handles.append(Line2D([], [], color="grey", linestyle="", marker="x", label="diverged"))
    made.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), frameon=False)


def save(made: Figure, path: Path) -> None:
    """Write the figure by way of a file beside it, so that it is never half there."""
    with replacing(path) as file:
        made.savefig(file, dpi=150, format=path.suffix[1:] or "png")


def as_text(learning_rate: float) -> str:
    """As papers write it: 1e-4, 3.5e-4."""
    mantissa, exponent = f"{learning_rate:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# Command line


def table(results: Iterable[Robustness]) -> str:
    """A row for each adapter: the numbers of ``Robustness``, behind final perplexities unless there are many."""
    results = list(results)
    every = sorted({lr for r in results for lr in r.curves})
    shown = every if len(every) <= PANELS else []
    rows = [("adapter", *map(as_text, shown), "rates", "best", "at", "spread", "area", "within 1%", "diverged")]
    for r in results:
        best, at = ("-", "-") if r.best is None else (f"{r.final_perplexity[r.best]:.3f}", as_text(r.best))
        measures = [(r.spread, ".3f"), (r.area_between_curves, ".3f"), (r.share_within, ".0%")]
        numbers = ["-" if value is None else format(value, form) for value, form in measures]
        finals = [_final(r, lr) for lr in shown]
        rows.append((r.label, *finals, str(len(r.curves)), best, at, *numbers, str(r.divergences)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join([row[0].ljust(widths[0]), *line[1:]]) for row, line in zip(rows, lines, strict=True))


def _final(result: Robustness, learning_rate: float) -> str:
    if learning_rate in result.final_perplexity:
        return f"{result.final_perplexity[learning_rate]:.3f}"
    if learning_rate in result.diverged:
        return "diverged"
    return "not ended" if learning_rate in result.curves else "-"


def _studies(path: Path) -> list[list[Run]]:
    """The studies in a directory of runs, or that of a run; without those that have only just begun."""
    runs = study_of(path)[1] if (path / "config.yaml").exists() else find_runs(path)
    if not runs:
        raise RunError(f"{path} is no run directory, and there is none in it.")
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.identity[0], []).append(run)
    begun = [study for study in found.values() if any(run.curve("val/perplexity") for run in study)]
    if not begun:
        raise RunError(f"{path}: no run has a validation perplexity yet.")
    return begun


def _heading(runs: list[Run]) -> str:
    model, data = runs[0].config["model"].get("base"), (runs[0].config.get("data") or {}).get("dataset") or {}
    names = ", ".join([*(run.name for run in runs[:5]), *(["..."] if len(runs) > 5 else [])])
    return f"{model} on {data.get('class_path')}; {names} (runs: {len(runs)})"


def main(arguments: list[str]) -> int:
    """Print the table of every study asked for, save its figure; returns the exit status, 2 after a user's mistake."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m cera.studies.lr_robustness", description=description)
    parser.add_argument("path", type=Path, help="a directory of runs, or one run: then the runs of its study beside it")
    parser.add_argument("--out", type=Path, help="the figure: .png, .pdf or .svg; PATH/lr_robustness.png if not given")
    given = parser.parse_args(arguments)
    out = given.out or given.path / "lr_robustness.png"
    try:
        for index, runs in enumerate(_studies(given.path), start=1):
            results = compare(runs).values()
            made = figure(results)
            target = out if index == 1 else out.with_stem(f"{out.stem}-{index}")
            save(made, target)
            print(f"{_heading(runs)}\n\n{table(results)}\n\nfigure: {target}\n")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
