"""Pictures of benchmark results, each drawn from the rows or the ``details`` of saved results."""

import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.harness import Result
from cera.spectral.figures import panels

AXES = {"rank": "rank r", "length": "tokens of the row", "layers": "layers"}
"""Axis labels of the scaling benchmark, by field of its points."""


def goals(results: Sequence[Result]) -> Figure:
    """Draw each ratio with a goal on a log axis: a dot for the median, a line for the spread, a bar for the goal.

    Args:
        results: Results of benchmarks; those without a goal get no panel.
    """
    rows = {result.name: [row for row in result.rows if row.goal] for result in results}
    rows = {name: with_goal for name, with_goal in rows.items() if with_goal}
    heights = [len(with_goal) + 1 for with_goal in rows.values()]
    figure = Figure(figsize=(12, 0.22 * sum(heights) + 0.8), dpi=100, layout="constrained")
    stacked = figure.subplots(len(rows), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for ax, (name, with_goal) in zip(stacked, rows.items(), strict=True):
        for height, row in enumerate(with_goal):
            assert row.goal is not None
            colour, marker = ("C0", "o") if row.reached else ("C3", "X")
            ax.plot(row.spread, [height, height], color=colour, linewidth=1.5)
            ax.plot([row.median], [height], color=colour, marker=marker)
            ax.plot([row.goal.bound], [height], color="0.2", marker="|", markersize=11, markeredgewidth=2)
        ax.set_yticks(range(len(with_goal)), [f"{row.what} ({row.goal})" for row in with_goal], fontsize="small")
        ax.set(xscale="log", ylim=(len(with_goal) - 0.5, -0.5))
        ax.set_title(name, loc="left", fontsize="medium")
        ax.grid(visible=True, alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    stacked[-1].xaxis.set_major_formatter("{x:g}")
    stacked[-1].set_xlabel("ratio (dot: reaches the goal, which is the bar; cross: does not)")
    return figure


def scaling_speed(details: Mapping[str, Any]) -> Figure:
    """Draw the tokens per second of a training step against rank, length and layers.

    Args:
        details: Details of the scaling benchmark.
    """
    return _scaling(details, "tokens/s", lambda point, name: [point["length"] / s for s in point["seconds"][name]])


def scaling_memory(details: Mapping[str, Any]) -> Figure:
    """Draw the memory growth of a training step, in MiB, against rank, length and layers.

    Args:
        details: Details of the scaling benchmark.
    """
    return _scaling(details, "peak memory over the model's, MiB", lambda p, name: [b / 2**20 for b in p["bytes"][name]])


def layer_time(details: Mapping[str, Any]) -> Figure:
    """Draw the milliseconds of a pair of layers, forward and backward, against rank, with a panel per width.

    Args:
        details: Details of the layer benchmark.
    """
    return _layer(details, "forward and backward, ms", lambda size, name: [1e3 * s for s in size["seconds"][name]])


def layer_memory(details: Mapping[str, Any]) -> Figure:
    """Draw the MiB that a pair of layers saves for its backward pass against rank, with a panel per width.

    Args:
        details: Details of the layer benchmark.
    """
    return _layer(details, "saved for backward, MiB", lambda size, name: [size["saved_bytes"][name] / 2**20])


def _layer(details: Mapping[str, Any], label: str, values: Any) -> Figure:
    sizes = {_size(name): measured for name, measured in details.items()}
    widths = sorted({width for width, _ in sizes})
    figure, axes = panels(len(widths))
    for ax, width in zip(axes, widths, strict=True):
        by_rank = {r: measured for (other, r), measured in sorted(sizes.items()) if other == width}
        for name in next(iter(by_rank.values()))["seconds"]:
            _spread(ax, list(by_rank), [values(measured, name) for measured in by_rank.values()], name)
        ax.set(title=f"d={width}", ylabel=label, ylim=(0, None))
        _powers_of_two(ax, list(by_rank), AXES["rank"])
    _legend_below(figure, axes[0])
    return figure


def _scaling(details: Mapping[str, Any], label: str, values: Any) -> Figure:
    base = details["base"]
    figure, axes = panels(len(AXES))
    for ax, (field, field_label) in zip(axes, AXES.items(), strict=True):
        others = [other for other in AXES if other != field]
        points = [point for point in details["points"] if all(point[other] == base[other] for other in others)]
        points.sort(key=lambda point: point[field])
        for name in dict.fromkeys(name for point in points for name in point["seconds"]):
            measured = [point for point in points if name in point["seconds"]]
            _spread(ax, [point[field] for point in measured], [values(point, name) for point in measured], name)
        fixed = ", ".join(
            f"{base[other]} layers" if other == "layers" else f"{other} {base[other]}" for other in others
        )
        ax.set(title=f"against {field} ({fixed})", ylabel=label, ylim=(0, None))
        _powers_of_two(ax, [point[field] for point in points], field_label)
    _legend_below(figure, axes[0])
    return figure


def _spread(ax: Axes, positions: Sequence[int], values: Sequence[Sequence[float]], label: str) -> None:
    """Draw a line through the medians, with a bar from minimum to maximum at each position."""
    middle = [median(rounds) for rounds in values]
    below = [m - min(rounds) for m, rounds in zip(middle, values, strict=True)]
    above = [max(rounds) - m for m, rounds in zip(middle, values, strict=True)]
    ax.errorbar(positions, middle, yerr=[below, above], marker="o", markersize=4, capsize=2, label=label)


def _powers_of_two(ax: Axes, positions: Sequence[int], label: str) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(positions, [str(position) for position in positions])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(label)


def _legend_below(figure: Figure, ax: Axes) -> None:
    """Draw one legend for all panels, from ``ax``, which has all lines."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)


def _size(name: str) -> tuple[int, int]:
    """Return (d, r) from the name of a size of the layer benchmark."""
    width, r = re.findall(r"\b[dr]=(\d+)", name)
    return int(width), int(r)
