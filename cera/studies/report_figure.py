"""Draws a study: the deciding metric over the selected axis, a metric over another axis, or a metric by method.

Example:
    >>> figure(summary)
    >>> figure(summary, x="rank", metric="effective_rank")
"""

import re
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cera.studies.axes import StudyError, format_number
from cera.studies.definition import REPLICATES
from cera.studies.estimates import Estimate, method_mean
from cera.studies.report_tables import choice_of
from cera.studies.selection import complete, finite
from cera.studies.summary import RunSummary, Summary

MOST_TICKS = 9
"""Maximum number of values of the axis with a tick of their own."""


def figure(summary: Summary, x: str | None = None, metric: str | None = None) -> Figure | None:
    """Draw the summary; ``None`` if no run has a value to draw.

    Means over the seeds have the 95% intervals of the tables; a ring marks the chosen value, and a cross at the top of
    the panel a value at which a run has no result.

    Args:
        summary: The study.
        x: An axis, such as ``rank``. Each method is drawn over it at its own best value of the selected axis; one that
            has no number on it, such as full fine-tuning, is a horizontal line. ``None`` is the selected axis.
        metric: The value to draw; by default the deciding metric or, without one or over an axis ``x``, the first that
            is reported.

    Raises:
        StudyError: The study has no such axis or value.
    """
    if x is not None and x not in summary.axes:
        raise StudyError(f"x must be an axis of {summary.study} ({', '.join(summary.axes)}), got {x!r}.")
    if summary.selection is not None and x == summary.selection.axis:
        x = None
    shown = _metric(summary, x, metric)
    if shown is None:
        return None
    drawn = Figure(figsize=(6.4, 4.0), layout="constrained")
    panel = drawn.add_subplot()
    panel.grid(visible=True, alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    if x is not None:
        _draw_over_axis(panel, summary, x, shown)
    elif summary.selection is not None and all(len(summary.grid(method)) for method in summary.methods):
        _draw_grid(panel, summary, shown)
    else:
        _draw_methods(panel, summary, shown)
    panel.set_ylabel(shown)
    panel.set_title(f"{summary.study}: {_replicates(summary)}")
    return drawn


def _metric(summary: Summary, x: str | None, metric: str | None) -> str | None:
    """Return the value to draw; ``None`` if no run has it."""
    measured = {name for run in summary.runs for name in run.values}
    if metric is not None and measured and metric not in measured:
        raise StudyError(f"metric must be a value of {summary.study} ({', '.join(sorted(measured))}), got {metric!r}.")
    if metric is None and summary.selection is not None and x is None:
        metric = summary.selection.metric
    metric = metric or next(iter(summary.metrics), None)
    return metric if metric in measured else None


def _replicates(summary: Summary) -> str:
    seeds = len({run.labels.get(REPLICATES, "") for run in summary.runs})
    return "one seed" if seeds == 1 else f"mean over {seeds} seeds, 95% intervals"


def _draw_grid(panel: Axes, summary: Summary, metric: str) -> None:
    assert summary.selection is not None
    for index, method in enumerate(summary.methods):
        color, numbers = f"C{index}", summary.grid(method)
        results = {numbers[label]: seeds for label, seeds in summary.results(method, metric).items()}
        good = sorted(number for number, seeds in results.items() if complete(seeds))
        labels = {number: label for label, number in numbers.items()}
        _draw_means(panel, good, [method_mean(summary, method, labels[each], metric) for each in good], color, method)
        bad = [number for number in results if number not in good]
        panel.plot(
            bad, [0.98 - 0.04 * index] * len(bad), "x", color=color, transform=panel.get_xaxis_transform()
        )  # fmt: skip
        best = choice_of(summary, method).value
        if best is not None:
            mean = statistics.fmean(finite(results[numbers[best]]).values())
            panel.plot([numbers[best]], [mean], "o", markersize=11, fillstyle="none", color=color)
    _set_numbers(panel, {number for method in summary.methods for number in summary.grid(method).values()})
    panel.set_xlabel(summary.selection.axis)
    panel.legend(frameon=False, fontsize="small")


def _draw_over_axis(panel: Axes, summary: Summary, x: str, metric: str) -> None:
    """Draw a line for each group of methods that differ in their value on the axis alone."""
    groups: dict[str, dict[str, float | None]] = {}
    for run in summary.runs:
        left_out = {x, REPLICATES, *([] if summary.selection is None else [summary.selection.axis])}
        group = "-".join(label for axis, label in run.labels.items() if axis not in left_out)
        groups.setdefault(group or summary.study, {})[run.method] = number_on_axis(run, x)
    for index, (group, numbers) in enumerate(groups.items()):
        color = f"C{index}"
        means = {m: method_mean(summary, m, choice_of(summary, m).value, metric) for m in numbers}
        placed = {m: number for m, number in numbers.items() if number is not None}
        good = sorted((m for m in placed if means[m] is not None), key=placed.__getitem__)
        bad = [number for m, number in placed.items() if means[m] is None]
        if good:
            _draw_means(panel, [placed[m] for m in good], [means[m] for m in good], color, group)
        if bad:
            heights = [0.98 - 0.04 * index] * len(bad)
            label = group if not good else None
            panel.plot(bad, heights, "x", color=color, transform=panel.get_xaxis_transform(), label=label)
        for method in numbers.keys() - placed.keys():
            _draw_level(panel, means[method], color, method if placed else group)
    _set_numbers(panel, {number for numbers in groups.values() for number in numbers.values() if number is not None})
    panel.set_xlabel(x)
    panel.legend(frameon=False, fontsize="small")


def number_on_axis(run: RunSummary, axis: str) -> float | None:
    """Return a run's value on an axis: a number, or that which a label such as ``r8`` ends with; ``None`` without."""
    if axis in run.numbers:
        return run.numbers[axis]
    found = re.fullmatch(r"[A-Za-z_]*?(\d+(?:\.\d+)?)", run.labels[axis])
    return None if found is None else float(found[1])


def _draw_level(panel: Axes, mean: Estimate | None, color: str, label: str) -> None:
    if mean is not None:
        panel.axhline(mean.mean, color=color, linestyle="--", label=label)
        if mean.low is not None and mean.high is not None:
            panel.axhspan(mean.low, mean.high, color=color, alpha=0.12, linewidth=0)


def _set_numbers(panel: Axes, numbers: set[float]) -> None:
    """Set scale and ticks for the numbers of an axis."""
    grid = sorted(numbers)
    if grid and grid[0] > 0:
        panel.set_xscale("log")
    if len(grid) <= MOST_TICKS:
        panel.set_xticks(grid, list(map(format_number, grid)))
        panel.xaxis.set_minor_locator(NullLocator())


def _draw_methods(panel: Axes, summary: Summary, metric: str) -> None:
    for index, method in enumerate(summary.methods):
        mean = method_mean(summary, method, choice_of(summary, method).value, metric)
        if mean is not None:
            _draw_means(panel, [index], [mean], f"C{index}", method)
    panel.set_xticks(range(len(summary.methods)), summary.methods, rotation=30, ha="right")


def _draw_means(panel: Axes, places: list[float], estimates: Sequence[Estimate | None], color: str, label: str) -> None:
    drawn = [each for each in estimates if each is not None]
    means = [each.mean for each in drawn]
    ends = [
        (each.mean, each.mean) if each.low is None or each.high is None else (each.low, each.high) for each in drawn
    ]
    # below and above: the ends of a bootstrap are not as far from the mean, and may by chance be beyond it
    lengths = [[max(mean - low, 0.0), max(high - mean, 0.0)] for mean, (low, high) in zip(means, ends, strict=True)]
    bars = list(zip(*lengths, strict=True)) or None
    panel.errorbar(places, means, yerr=bars, fmt="-o", markersize=4, capsize=3, color=color, label=label)
