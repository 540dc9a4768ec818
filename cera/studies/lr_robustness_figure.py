"""Draws paper Fig. 2: validation perplexity by learning rate, and final perplexity against the learning rate.

save_figure(figure(robustness_by_adapter(runs).values()), Path("lr_robustness.png"))
"""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cera.runs.files import replacing
from cera.studies.lr_robustness import Curve, Robustness, format_learning_rate

MAX_PANELS = 11
"""Maximum number of learning rates with a panel of their own."""

LOG_SCALE_RATIO = 4
"""Perplexities whose maximum exceeds their minimum by more than this factor are drawn on a log scale."""

WITHOUT_DATE = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Metadata by kind of file, without what differs between two drawings of the same."""


def figure(results: Iterable[Robustness]) -> Figure:
    """Draw perplexity against step, one panel per learning rate, then final perplexity against learning rate.

    All panels of curves share the scale of the trained models that did not diverge; the base model, before the first
    step, may lie above it. Of more than ``MAX_PANELS`` learning rates an evenly spaced choice gets panels.
    """
    results = list(results)
    all_rates = sorted({lr for r in results for lr, curves in r.curves.items() if any(c.perplexity for c in curves)})
    chosen = [all_rates[round(i)] for i in np.linspace(0, len(all_rates) - 1, min(len(all_rates), MAX_PANELS))]
    count = len(chosen) + 1
    columns = count if count <= 4 else min((4, 3), key=lambda columns: -count % columns)  # fewest empty cells
    rows = math.ceil(count / columns)
    drawn = Figure(figsize=(3.1 * columns + 0.4, 2.7 * rows + 0.6), layout="constrained")
    panels = [drawn.add_subplot(rows, columns, index) for index in range(1, count + 1)]
    for panel in panels:
        panel.grid(visible=True, alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for panel, learning_rate in zip(panels[:-1], chosen, strict=True):
        _draw_curves(panel, results, learning_rate)
    for panel in panels[:-1:columns]:
        panel.set_ylabel("Validation perplexity")
    _draw_finals(panels[-1], results)
    _add_legend(drawn, results)
    if len(chosen) < len(all_rates):
        drawn.suptitle(f"{len(chosen)} of {len(all_rates)} learning rates", fontsize="medium")
    return drawn


def _all_curves(results: list[Robustness]) -> list[Curve]:
    return [curve for result in results for replicates in result.curves.values() for curve in replicates]


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
    last = max(step for curve in _all_curves(results) for step in curve.perplexity) or 1
    panel.set_xlim(-0.03 * last, 1.03 * last)
    panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    panel.set_title(f"Learning rate {format_learning_rate(learning_rate)}", fontsize="medium")
    panel.set_xlabel("Training step")


def _window(panel: Axes, results: list[Robustness]) -> tuple[float, float]:
    """Set and return the panel's range so that untrained and diverged models do not squash the others."""
    curves = _all_curves(results)
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
    else:  # the base would leave less than a quarter of the panel to all others; its value is written there instead
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
    all_rates = sorted({lr for r in results for lr in (*r.final_perplexity, *r.diverged)})
    panel.set_xscale("log")
    panel.margins(x=0.1)
    if len(all_rates) == 1:
        panel.set_xlim(all_rates[0] / 2, all_rates[0] * 2)
    if len(all_rates) <= 6:
        names = [format_learning_rate(lr) for lr in all_rates]
        panel.set_xticks(all_rates, names, rotation=45 if len(all_rates) > 3 else 0)
        panel.xaxis.set_minor_locator(NullLocator())
    if not any(r.final_perplexity for r in results):
        panel.set_yticks([])
    panel.set_title("After training", fontsize="medium")
    panel.set_xlabel("Learning rate")
    panel.set_ylabel("Final validation perplexity")


def _scale(panel: Axes, perplexities: list[float]) -> bool:
    """Use a log scale if the perplexities differ by orders of magnitude; return whether it is used."""
    log = max(perplexities, default=1) > LOG_SCALE_RATIO * min(perplexities, default=1)
    if log:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        panel.yaxis.set_minor_locator(NullLocator())
    return log


def _add_legend(drawn: Figure, results: list[Robustness]) -> None:
    states = {curve.state for curve in _all_curves(results)}
    handles = [Line2D([], [], color=f"C{index}", label=r.label) for index, r in enumerate(results)]
    if "running" in states:
        handles.append(Line2D([], [], color="grey", linestyle="--", label="not ended"))
    if "diverged" in states:
        handles.append(Line2D([], [], color="grey", linestyle="", marker="x", label="diverged"))
    drawn.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), frameon=False)


def save_figure(drawn: Figure, path: Path) -> None:
    """Write the figure atomically, the same bytes each time; its directory is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:] or "png"
    with replacing(path) as file, rc_context({"svg.hashsalt": "cera"}):
        drawn.savefig(file, dpi=150, format=kind, metadata=WITHOUT_DATE.get(kind))
