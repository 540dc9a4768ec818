"""Draws whether one measured value predicts another: all runs of studies, and each method at its own best rate.

Example:
    >>> correlation_figure([summary], ("effective_rank", "held_out_perplexity"), {"cera*": "CeRA", "lora*": "LoRA"})
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from cera.studies.axes import StudyError
from cera.studies.correlation import MethodPoints, correlation, method_points
from cera.studies.summary import Summary


def correlation_figure(
    summaries: Sequence[Summary], metrics: tuple[str, str], groups: Mapping[str, str], above: float = np.inf
) -> Figure:
    """Draw a small point for each run and a large one for each method at its best rate.

    Args:
        summaries: The studies.
        metrics: The values on the horizontal and on the vertical axis; the former positive.
        groups: Words by pattern of methods' names; a method has the color of the first that matches.
        above: Runs whose vertical value is higher are left out, and counted in the title.

    Raises:
        StudyError: No run has both values, or a method matches no pattern.
    """
    drawn = Figure(figsize=(6.4, 4.4), layout="constrained")
    panel = drawn.add_subplot()
    panel.set(xscale="log", xlabel=metrics[0], ylabel=metrics[1])
    panel.grid(visible=True, which="both", alpha=0.2)
    panel.spines[["top", "right"]].set_visible(False)
    words = list(dict.fromkeys(groups.values()))
    methods = [each for each in method_points(summaries, metrics) if len(each.runs)]
    if not methods:
        raise StudyError(f"no run has both {metrics[0]} and {metrics[1]}.")
    left_out = 0
    for each in methods:
        color = f"C{words.index(_group(each, groups))}"
        runs = each.runs[each.runs[:, 1] <= above]
        left_out += len(each.runs) - len(runs)
        panel.scatter(runs[:, 0], runs[:, 1], s=8, color=color, alpha=0.3, linewidths=0)
        if each.best is not None:
            panel.scatter(each.best[0], each.best[1], s=36, color=color, edgecolors="black", linewidths=0.8, zorder=3)
    for index, word in enumerate(words):
        panel.scatter([], [], s=36, color=f"C{index}", edgecolors="black", linewidths=0.8, label=word)
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.xaxis.set_minor_formatter(ScalarFormatter())
    panel.legend(frameon=False, fontsize="small")
    across = correlation(summaries, metrics, "across")
    rho = "" if across is None else f"; across {across.seeds} methods at their best, rank correlation {across.mean:.2f}"
    beyond = f" ({left_out} above {above:g} are not drawn)" if left_out else ""
    panel.set_title(f"{sum(len(each.runs) for each in methods)} runs{beyond}{rho}", fontsize="small")
    return drawn


def _group(points: MethodPoints, groups: Mapping[str, str]) -> str:
    for pattern, word in groups.items():
        if fnmatchcase(points.method, pattern):
            return word
    raise StudyError(f"no pattern of {', '.join(groups)} matches the method {points.method} of {points.study}.")
