"""Draws a study: the deciding metric over the selected axis, a metric over another axis, or a metric by method.

Example:
    >>> figure(summary)
    >>> figure(summary, x="rank", metric="effective_rank")
"""

import re
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cera.studies.axes import StudyError, format_number
from cera.studies.definition import REPLICATES
from cera.studies.estimates import Estimate, method_mean
from cera.studies.selection import complete, finite
from cera.studies.summary import RunSummary, Summary

MOST_TICKS = 9
"""Maximum number of values of the axis with a tick of their own."""

MOST_IN_PANEL = 4
"""Maximum number of methods whose legend stands within the panel."""

LEGEND_LINE = 0.22
"""Height of a line of the legend, in inches."""

FAR = 5
"""A mean is far worse than most if it is this many times as far from the best one as a quarter of all are."""

STYLES = ("-", "--", ":", "-.")
"""Styles of lines; the next one where the ten colours begin anew."""

LABEL = re.compile(r"[A-Za-z_]*(\d+(?:\.\d+)?)")
"""A named value of an axis of numbers, such as ``r8``."""

RANK = re.compile(r"-r(\d+)(?=-|$)")
"""The rank in the label of an adapter, such as ``lora-r8``."""


class Place(NamedTuple):
    """Where a run is drawn.

    Attributes:
        group: What it has in common with the other runs of its line.
        number: Its value on the axis; ``None`` if it has none.
    """

    group: str
    number: float | None


class Point(NamedTuple):
    """A mean that is drawn.

    Attributes:
        place: Its value on the axis.
        height: The mean.
        color: Color of its line.
    """

    place: float
    height: float
    color: str


def figure(summary: Summary, x: str | None = None, metric: str | None = None) -> Figure | None:
    """Draw the summary; ``None`` if no run has a value to draw.

    Means over the seeds have the 95% intervals of the tables; a ring marks the chosen value, a cross at the top of the
    panel a value at which a run has no result, and an arrow there one at which the mean is far worse than most.

    Args:
        summary: The study.
        x: An axis, or ``rank`` where labels such as ``lora-r8`` have it. Each method is drawn over it at its own best
            value of the selected axis; one that has no number on it, such as full fine-tuning, is a horizontal line.
            ``None`` is the selected axis.
        metric: The value to draw; by default the deciding metric or, without one or over an axis ``x``, the first that
            is reported.

    Raises:
        StudyError: The study has no such axis or value.
    """
    if x is not None and x not in summary.axes and all(place(run, summary, x).number is None for run in summary.runs):
        raise StudyError(f"x must be an axis of {summary.study} ({', '.join(summary.axes)}), got {x!r}.")
    if summary.selection is not None and x == summary.selection.axis:
        x = None
    shown = _metric(summary, x, metric)
    if shown is None:
        return None
    height = max(4.0, 0.5 + LEGEND_LINE * len(summary.methods))  # so that a legend beside the panel has its place
    drawn = Figure(figsize=(6.4, height), layout="constrained")
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
    panel.set_title(f"{summary.study}\n{_replicates(summary)}", fontsize="medium")
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
    if seeds == 1:
        return "one seed"
    searched = 0 if summary.selection is None else len(summary.selection.search_seeds)
    elsewhere = f" at the best value, {searched} at others" if 0 < searched < seeds else ""
    return f"mean over {seeds} seeds{elsewhere}, 95% intervals"


def _draw_grid(panel: Axes, summary: Summary, metric: str) -> None:
    assert summary.selection is not None
    points: list[Point] = []
    for index, method in enumerate(summary.methods):
        color, style = f"C{index}", STYLES[index // 10 % len(STYLES)]
        numbers = summary.grid(method)
        results = {numbers[label]: seeds for label, seeds in summary.results(method, metric).items()}
        good = sorted(number for number, seeds in results.items() if complete(seeds))
        labels = {number: label for label, number in numbers.items()}
        means = [method_mean(summary, method, labels[each], metric) for each in good]
        draw_means(panel, good, means, color, method, style)
        points += [Point(x, mean.mean, color) for x, mean in zip(good, means, strict=True) if mean is not None]
        bad = [number for number in results if number not in good]
        panel.plot(bad, _heights(bad, index), "x", color=color, transform=panel.get_xaxis_transform())
        best = summary.choice(method).value
        chosen = [] if best is None else list(finite(results[numbers[best]]).values())
        if best is not None and chosen:  # the value may be one that this method does not have
            mean = statistics.fmean(chosen)
            panel.plot([numbers[best]], [mean], "o", markersize=11, fillstyle="none", color=color)
    if summary.selection.goal == "min" and points:
        _leave_out_the_worst(panel, points)
    _set_numbers(panel, {number for method in summary.methods for number in summary.grid(method).values()})
    panel.set_xlabel(summary.selection.axis)
    _draw_legend(panel)


def _leave_out_the_worst(panel: Axes, points: Sequence[Point]) -> None:
    """End the panel where means are far worse than most, so that the others can be told apart, and mark those above."""
    heights = [point.height for point in points]
    best, upper = min(heights), float(np.quantile(heights, 0.75))
    highest = best + FAR * (upper - best)
    if max(heights) <= highest:
        return
    panel.set_ylim(best - 0.05 * (highest - best), highest)
    for point in points:
        if point.height > highest:
            panel.plot([point.place], [0.98], "^", color=point.color, transform=panel.get_xaxis_transform())


def _draw_over_axis(panel: Axes, summary: Summary, x: str, metric: str) -> None:
    """Draw a line for each group of methods that differ in their value on the axis alone."""
    groups: dict[str, dict[str, float | None]] = {}
    for run in summary.runs:
        group, number = place(run, summary, x)
        groups.setdefault(group, {})[run.method] = number
    for index, (group, numbers) in enumerate(groups.items()):
        color = f"C{index}"
        means = {m: method_mean(summary, m, summary.choice(m).value, metric) for m in numbers}
        placed = {m: number for m, number in numbers.items() if number is not None}
        good = sorted((m for m in placed if means[m] is not None), key=placed.__getitem__)
        bad = [number for m, number in placed.items() if means[m] is None]
        if good:
            draw_means(panel, [placed[m] for m in good], [means[m] for m in good], color, group)
        if bad:
            label = group if not good else None
            panel.plot(bad, _heights(bad, index), "x", color=color, transform=panel.get_xaxis_transform(), label=label)
        for method in (m for m in numbers if m not in placed):
            _draw_level(panel, means[method], color, method if placed else group)
    _set_numbers(panel, {number for numbers in groups.values() for number in numbers.values() if number is not None})
    panel.set_xlabel(x)
    _draw_legend(panel)


def place(run: RunSummary, summary: Summary, x: str) -> Place:
    """Return where a run stands on an axis, or, if there is no axis ``rank``, by the rank that its labels name."""
    left_out = {REPLICATES, *([] if summary.selection is None else [summary.selection.axis])}
    parts, number = [], run.numbers.get(x)
    for axis, label in run.labels.items():
        if axis == x:
            found = LABEL.fullmatch(label)
            number = float(found[1]) if number is None and found is not None else number
        elif axis not in left_out:
            rank = RANK.search(label) if x == "rank" and x not in run.labels else None
            number = number if rank is None else float(rank[1])
            parts.append(label if rank is None else RANK.sub("", label))
    return Place("-".join(parts) or summary.study, number)


def _draw_level(panel: Axes, mean: Estimate | None, color: str, label: str) -> None:
    if mean is not None:
        panel.axhline(mean.mean, color=color, linestyle="--", label=label)
        if mean.low is not None and mean.high is not None:
            panel.axhspan(mean.low, mean.high, color=color, alpha=0.12, linewidth=0)


def _heights(places: Sequence[float], index: int) -> list[float]:
    """Return where crosses stand, as shares of the panel: at its top, so that those of few methods do not overlap."""
    return [0.98 - 0.04 * (index % 4)] * len(places)


def _draw_legend(panel: Axes) -> None:
    """Draw the legend within the panel, or beside it if it is long."""
    if len(panel.get_legend_handles_labels()[0]) <= MOST_IN_PANEL:
        panel.legend(frameon=False, fontsize="small")
    else:
        panel.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


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
        mean = method_mean(summary, method, summary.choice(method).value, metric)
        if mean is not None:
            draw_means(panel, [index], [mean], f"C{index}", method)
    panel.set_xticks(range(len(summary.methods)), summary.methods, rotation=30, ha="right")


def draw_means(
    panel: Axes, places: list[float], estimates: Sequence[Estimate | None], color: str, label: str, style: str = "-"
) -> None:
    """Draw the estimates that there are as a line over their places, with bars for their intervals."""
    drawn = [each for each in estimates if each is not None]
    means = [each.mean for each in drawn]
    ends = [
        (each.mean, each.mean) if each.low is None or each.high is None else (each.low, each.high) for each in drawn
    ]
    # below and above: the ends of a bootstrap are not as far from the mean, and may by chance be beyond it
    lengths = [[max(mean - low, 0.0), max(high - mean, 0.0)] for mean, (low, high) in zip(means, ends, strict=True)]
    bars = list(zip(*lengths, strict=True)) or None
    panel.errorbar(places, means, yerr=bars, fmt=f"{style}o", markersize=4, capsize=3, color=color, label=label)
