"""The paper's spectral figures (Fig. 1, 3 and 4), from spectra that a run has kept.

Every function takes ``{label: {layer: singular values}}`` or the like and returns a matplotlib figure; a line is an
adapter, and the shade around it holds its layers from the 10th to the 90th percentile.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from torch import Tensor

from cera.spectral import cumulative_energy, effective_rank, energy_rank
from cera.spectral.layer_names import by_module

Layers = dict[str, Tensor]
FLOOR = 1e-6
"""Singular values below this share of the largest are numerical zeros to an adapter in bf16, and are not drawn."""


def spectral_signature(spectra: dict[str, Layers]) -> Figure:
    """Singular values in order over the largest, log scale (Fig. 3; Fig. 4, left).

    Args:
        spectra: By adapter, then layer: (k,) fp64, descending.
    """
    figure, axes = panels(1)
    draw_signature(axes[0], spectra)
    return figure


def cumulative_energy_curves(spectra: dict[str, Layers]) -> Figure:
    """Energy held by the leading components, with the line of 90% that AUC-90 counts to (Fig. 1 and 4, right).

    Args:
        spectra: By adapter, then layer: (k,) fp64, descending.
    """
    figure, axes = panels(1)
    draw_cumulative_energy(axes[0], spectra)
    return figure


def effective_rank_map(history: dict[int, Layers]) -> Figure:
    """Effective rank of every layer over training, a panel for each module.

    Args:
        history: By optimizer step, then layer: (k,) fp64, descending.
    """
    steps = sorted(history)
    modules = by_module(history[steps[-1]])
    figure, axes = panels(len(modules), height=4.5)
    ranks = {
        module: {
            number: [effective_rank(history[step][name]) if name in history[step] else np.nan for step in steps]
            for number, name in names.items()
        }
        for module, names in modules.items()
    }
    top = max(np.nanmax(list(of.values())) for of in ranks.values())
    for ax, (module, of) in zip(axes, ranks.items(), strict=True):
        numbers = list(of)
        image = ax.imshow(list(of.values()), aspect="auto", origin="lower", vmin=0, vmax=max(top, 1), cmap="viridis")
        _few_ticks(ax.set_xticks, steps)
        _few_ticks(ax.set_yticks, numbers)
        ax.set(title=module, xlabel="step", ylabel="layer")
        ax.grid(visible=False)
    figure.colorbar(image, ax=axes, label="effective rank of the update")
    return figure


def side_by_side(spectra: dict[str, Layers], quantity: str = "update") -> Figure:
    """Signature, cumulative energy, and effective rank by layer, of several adapters.

    Args:
        spectra: By adapter, then layer: (k,) fp64, descending.
        quantity: What the singular values are of, for the titles.
    """
    figure, axes = panels(3)
    draw_signature(axes[0], spectra, quantity)
    draw_cumulative_energy(axes[1], spectra)
    draw_effective_rank_by_layer(axes[2], spectra)
    return figure


def draw_signature(ax: Axes, spectra: dict[str, Layers], quantity: str = "update") -> None:
    """The panel of ``spectral_signature``."""
    for label, layers in spectra.items():
        # an update that is zero, as at the start, has no signature
        curves = _padded([sigma / sigma.max() for sigma in layers.values() if len(sigma) and sigma.max() > 0], 0.0)
        if curves.size:
            _line_and_shade(ax, np.where(curves < FLOOR, np.nan, curves), label, log=True)
            ax.set_yscale("log")
    ax.set(title=f"Spectral signature of the {quantity}", xlabel="component", ylabel="singular value / largest")
    if ax.lines:
        ax.legend()


def draw_cumulative_energy(ax: Axes, spectra: dict[str, Layers]) -> None:
    """The panel of ``cumulative_energy_curves``."""
    for label, layers in spectra.items():
        ninety = np.mean([energy_rank(sigma) for sigma in layers.values()])
        curves = _padded([cumulative_energy(sigma) for sigma in layers.values()], 1.0)
        if curves.size:
            _line_and_shade(ax, curves, f"{label} (AUC-90 {ninety:.1f})")
    ax.axhline(0.9, color="0.4", linestyle="--", linewidth=1)
    ax.annotate("90%", (1, 0.9), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.4")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(title="Cumulative energy", xlabel="components", ylabel="share of the energy", ylim=(0, 1.03))
    if len(ax.lines) > 1:
        ax.legend(loc="lower right")


def draw_effective_rank_by_layer(ax: Axes, spectra: dict[str, Layers]) -> None:
    """Effective rank against layer: a colour for each adapter, a line style for each module."""
    styles = ["-", "--", ":", "-."]
    for i, (label, layers) in enumerate(spectra.items()):
        for j, (module, names) in enumerate(by_module(layers).items()):
            ranks = [effective_rank(layers[name]) for name in names.values()]
            ax.plot(list(names), ranks, color=f"C{i}", linestyle=styles[j % 4], label=f"{label}, {module}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(title="Effective rank", xlabel="layer", ylabel="effective rank", ylim=(0, None))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=len(spectra), fontsize="small")


def panels(count: int, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels side by side, in the style of all of these."""
    figure = Figure(figsize=(5.5 * count, height), dpi=100, layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for ax in axes:
        ax.grid(visible=True, alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _padded(curves: Sequence[Tensor], fill: float) -> np.ndarray:
    """(layers, longest): layers of another width than the widest end in ``fill``."""
    longest = max((len(curve) for curve in curves), default=0)
    rows = [torch.cat([c, c.new_full((longest - len(c),), fill)]).numpy() for c in curves]
    return np.array(rows).reshape(len(rows), longest)


def _line_and_shade(ax: Axes, curves: np.ndarray, label: str, log: bool = False) -> None:
    components = np.arange(1, curves.shape[1] + 1)
    shown = ~np.isnan(curves).all(axis=0)
    curves, components = curves[:, shown], components[shown]
    logs = np.log(curves) if log else curves
    low, middle, high = (
        np.exp(part) if log else part
        for part in (np.nanpercentile(logs, 10, axis=0), np.nanmean(logs, axis=0), np.nanpercentile(logs, 90, axis=0))
    )
    line = ax.plot(components, middle, label=label)[0]
    ax.fill_between(components, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _few_ticks(set_ticks: Any, values: Sequence[int], at_most: int = 8) -> None:
    every = -(-len(values) // at_most)
    places = range(0, len(values), every)
    set_ticks(list(places), [str(values[i]) for i in places])
