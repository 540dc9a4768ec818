"""Pictures of what benchmarks found, each from the rows or the ``details`` of saved results."""

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
"""Of the scaling benchmark, by field of its points."""


def goals(results: Sequence[Result]) -> Figure:
    """Every ratio that has a goal, on a log axis: a dot for the median, a line for the spread, a bar for the goal.

    Args:
        results: Of benchmarks, of which those without a goal get no panel.
    """
    rows = {result.name: [row for row in result.rows if row.goal] for result in results}
    rows = {name: of for name, of in rows.items() if of}
    heights = [len(of) + 1 for of in rows.values()]
    figure = Figure(figsize=(12, 0.22 * sum(heights) + 0.8), dpi=100, layout="constrained")
    stacked = figure.subplots(len(rows), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for ax, (name, of) in zip(stacked, rows.items(), strict=True):
        for place, row in enumerate(of):
            assert row.goal is not None
            colour, marker = ("C0", "o") if row.reached else ("C3", "X")
            ax.plot(row.spread, [place, place], color=colour, linewidth=1.5)
            ax.plot([row.median], [place], color=colour, marker=marker)
            ax.plot([row.goal.bound], [place], color="0.2", marker="|", markersize=11, markeredgewidth=2)
        ax.set_yticks(range(len(of)), [f"{row.what} ({row.goal})" for row in of], fontsize="small")
        ax.set(xscale="log", ylim=(len(of) - 0.5, -0.5))
        ax.set_title(name, loc="left", fontsize="medium")
        ax.grid(visible=True, alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    stacked[-1].xaxis.set_major_formatter("{x:g}")
    stacked[-1].set_xlabel("ratio: dots reach their goal, the bar, and crosses do not")
    return figure


def scaling_speed(details: Mapping[str, Any]) -> Figure:
    """Tokens a second of a training step against rank, length and layers.

    Args:
        details: Of the scaling benchmark.
    """
    return _scaling(details, "tokens/s", lambda point, name: [point["length"] / s for s in point["seconds"][name]])


def scaling_memory(details: Mapping[str, Any]) -> Figure:
    """Growth of memory in a training step, in MiB, against rank, length and layers.

    Args:
        details: Of the scaling benchmark.
    """
    return _scaling(details, "peak memory over the model's, MiB", lambda p, name: [b / 2**20 for b in p["bytes"][name]])


def layer_time(details: Mapping[str, Any]) -> Figure:
    """Milliseconds of a pair of layers, forward and backward, against rank, a panel for each width.

    Args:
        details: Of the layer benchmark.
    """
    return _layer(details, "forward and backward, ms", lambda of, name: [1e3 * s for s in of["seconds"][name]])


def layer_memory(details: Mapping[str, Any]) -> Figure:
    """MiB that a pair of layers saves for its backward pass against rank, a panel for each width.

    Args:
        details: Of the layer benchmark.
    """
    return _layer(details, "saved for backward, MiB", lambda of, name: [of["saved_bytes"][name] / 2**20])


def _layer(details: Mapping[str, Any], what: str, values: Any) -> Figure:
    sizes = {_size(name): found for name, found in details.items()}
    widths = sorted({width for width, _ in sizes})
    figure, axes = panels(len(widths))
    for ax, width in zip(axes, widths, strict=True):
        found = {r: of for (other, r), of in sorted(sizes.items()) if other == width}
        for name in next(iter(found.values()))["seconds"]:
            _spread(ax, list(found), [values(of, name) for of in found.values()], name)
        ax.set(title=f"d={width}", ylabel=what, ylim=(0, None))
        _powers_of_two(ax, list(found), AXES["rank"])
    _legend_below(figure, axes[0])
    return figure


def _scaling(details: Mapping[str, Any], what: str, values: Any) -> Figure:
    base = details["base"]
    figure, axes = panels(len(AXES))
    for ax, (field, label) in zip(axes, AXES.items(), strict=True):
        others = [other for other in AXES if other != field]
        points = [point for point in details["points"] if all(point[other] == base[other] for other in others)]
        points.sort(key=lambda point: point[field])
        for name in dict.fromkeys(name for point in points for name in point["seconds"]):
            having = [point for point in points if name in point["seconds"]]
            _spread(ax, [point[field] for point in having], [values(point, name) for point in having], name)
        fixed = ", ".join(
            f"{base[other]} layers" if other == "layers" else f"{other} {base[other]}" for other in others
        )
        ax.set(title=f"against {field} ({fixed})", ylabel=what, ylim=(0, None))
        _powers_of_two(ax, [point[field] for point in points], label)
    _legend_below(figure, axes[0])
    return figure


def _spread(ax: Axes, places: Sequence[int], values: Sequence[Sequence[float]], label: str) -> None:
    """A line through the medians, with a bar from the smallest to the largest at each place."""
    middle = [median(of) for of in values]
    below = [m - min(of) for m, of in zip(middle, values, strict=True)]
    above = [max(of) - m for m, of in zip(middle, values, strict=True)]
    ax.errorbar(places, middle, yerr=[below, above], marker="o", markersize=4, capsize=2, label=label)


def _powers_of_two(ax: Axes, places: Sequence[int], label: str) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(places, [str(place) for place in places])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(label)


def _legend_below(figure: Figure, ax: Axes) -> None:
    """One legend for all panels, from one that has all lines."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)


def _size(name: str) -> tuple[int, int]:
    """(d, r) from the name of a size of the layer benchmark."""
    width, r = re.findall(r"\b[dr]=(\d+)", name)
    return int(width), int(r)
