"""Draws a study: the deciding metric over the selected axis, or, without one, a metric by method.

Example:
    >>> figure(summary)  # in a notebook
"""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cera.studies.axes import format_number
from cera.studies.estimates import Estimate, method_mean
from cera.studies.report_tables import choice_of
from cera.studies.selection import complete, finite
from cera.studies.summary import Summary

MOST_TICKS = 9
"""Maximum number of values of the axis with a tick of their own."""


def figure(summary: Summary) -> Figure | None:
    """Draw the summary; ``None`` if no run has a value to draw.

    Means over the seeds have the 95% intervals of the tables; a ring marks the chosen value, and a cross at the top of
    the panel a value at which a run has no result.
    """
    metric = summary.selection.metric if summary.selection is not None else next(iter(summary.metrics), None)
    if metric is None or not any(metric in run.values for run in summary.runs):
        return None
    drawn = Figure(figsize=(6.4, 4.0), layout="constrained")
    panel = drawn.add_subplot()
    panel.grid(visible=True, alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    if summary.selection is not None and all(len(summary.grid(method)) for method in summary.methods):
        _draw_grid(panel, summary, metric)
    else:
        _draw_methods(panel, summary, metric)
    panel.set_ylabel(metric)
    panel.set_title(summary.study)
    return drawn


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
    grid = sorted({number for method in summary.methods for number in summary.grid(method).values()})
    if grid[0] > 0:
        panel.set_xscale("log")
    if len(grid) <= MOST_TICKS:
        panel.set_xticks(grid, list(map(format_number, grid)))
        panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel(summary.selection.axis)
    panel.legend(frameon=False, fontsize="small")


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
