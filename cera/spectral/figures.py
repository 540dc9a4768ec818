"""The paper's spectral figures (Fig. 1, 3 and 4), from singular values.

    from cera.runs.finished import FinishedRun
    spectra = {run.label: run.spectra()[-1].values["update"] for run in map(FinishedRun.read, folders)}
    side_by_side({"update, not centred": spectra}).savefig("spectra.png")

Functions take the singular values of several adapters, by label and layer, and return a matplotlib figure. Each adapter
is a line, and the shade around it spans the 10th to the 90th percentile of its layers. ``matrix`` says in the titles
what the singular values are of: by default the update, not centred.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from torch import Tensor

from cera.spectral.aggregate import ALL_LAYERS, SpectralSummary, summarize
from cera.spectral.convention import describe_matrix
from cera.spectral.files import LayerSpectra
from cera.spectral.layer_names import by_module
from cera.spectral.measures import cumulative_energy

FLOOR = 1e-6
"""Singular values below this share of the largest count as this: to an adapter in bf16 they are numerically zero."""

UPDATE = describe_matrix("update")

SetTicks = Callable[[list[int], list[str]], object]
"""Sets the positions and labels of an axis's ticks."""


def spectral_signature(spectra: dict[str, LayerSpectra]) -> Figure:
    """Draw the singular values, divided by the largest, on a log scale (Fig. 3; Fig. 4, left).

    Args:
        spectra: By adapter, then layer: (k,) fp64, descending.
    """
    figure, axes = panels(1)
    draw_signature(axes[0], spectra)
    return figure


def cumulative_energy_curves(spectra: dict[str, LayerSpectra]) -> Figure:
    """Draw the share of the energy in the leading components, with AUC-90's line at 90% (Fig. 1 and 4, right).

    Args:
        spectra: By adapter, then layer: (k,) fp64, descending.
    """
    figure, axes = panels(1)
    draw_cumulative_energy(axes[0], spectra)
    return figure


def effective_rank_map(history: dict[int, LayerSpectra]) -> Figure:
    """Draw the effective rank of every layer over training as an image, with a panel for each module.

    Args:
        history: By optimizer step, then layer: (k,) fp64, descending.
    """
    steps = sorted(history)
    summaries = [_summary(history[step]) for step in steps]
    ranks = [summary.by_layer["effective_rank"] for summary in summaries]
    modules = summaries[-1].modules
    figure, axes = panels(len(modules), height=4.5)
    images = {
        module: np.array([[by_layer.get(name, np.nan) for by_layer in ranks] for name in names.values()])
        for module, names in modules.items()
    }
    highest = max(np.nanmax(image) for image in images.values())
    for ax, (module, names) in zip(axes, modules.items(), strict=True):
        image = ax.imshow(images[module], aspect="auto", origin="lower", vmin=0, vmax=max(highest, 1), cmap="viridis")
        _set_few_ticks(ax.set_xticks, steps)
        _set_few_ticks(ax.set_yticks, list(names))
        ax.set(title=module, xlabel="step", ylabel="layer")
        ax.grid(visible=False)
    figure.colorbar(image, ax=axes, label=f"effective rank of the {UPDATE}")
    return figure


def side_by_side(matrices: dict[str, dict[str, LayerSpectra]], caption: str = "") -> Figure:
    """Draw signature, cumulative energy and effective rank by layer of several adapters, a row of panels per matrix.

    Args:
        matrices: By words for the matrix (``cera.spectral.convention.describe_matrix``), then adapter, then layer: (k,)
            fp64, descending.
        caption: Text above the panels: the tokens, and what is not comparable.
    """
    figure, axes = panels(3, rows=len(matrices))
    for i, (matrix, spectra) in enumerate(matrices.items()):
        draw_signature(axes[3 * i], spectra, matrix)
        draw_cumulative_energy(axes[3 * i + 1], spectra, matrix)
        draw_effective_rank_by_layer(axes[3 * i + 2], spectra, matrix)
    figure.suptitle(caption, fontsize="medium")
    return figure


def draw_signature(ax: Axes, spectra: dict[str, LayerSpectra], matrix: str = UPDATE) -> None:
    """Draw the panel of ``spectral_signature``."""
    for label, layers in spectra.items():
        for group, curves in _by_width(layers).items():
            drawn = curves[:, (curves > FLOOR).any(axis=0)].clip(FLOOR)
            _draw_line_and_shade(ax, drawn, f"{label}, {group}" if group else label, log=True)
            ax.set_yscale("log")
    ax.set(title=f"Spectral signature of the {matrix}", xlabel="component", ylabel="singular value / largest")
    if ax.lines:
        ax.legend()


def draw_cumulative_energy(ax: Axes, spectra: dict[str, LayerSpectra], matrix: str = UPDATE) -> None:
    """Draw the panel of ``cumulative_energy_curves``."""
    for label, layers in spectra.items():
        curves = _padded([cumulative_energy(sigma) for sigma in layers.values() if sigma.any()], 1.0)
        if curves.size:
            mean = _summary(layers).means["auc_90"][ALL_LAYERS]
            _draw_line_and_shade(ax, curves, f"{label} (AUC-90 {mean:.1f})")
    ax.axhline(0.9, color="0.4", linestyle="--", linewidth=1)
    ax.annotate("90%", (1, 0.9), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.4")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(
        title=f"Cumulative energy of the {matrix}", xlabel="components", ylabel="share of the energy", ylim=(0, 1.03)
    )
    if len(ax.lines) > 1:
        ax.legend(loc="lower right")


def draw_effective_rank_by_layer(ax: Axes, spectra: dict[str, LayerSpectra], matrix: str = UPDATE) -> None:
    """Draw the effective rank against the layer: a colour for each adapter, a line style for each module."""
    styles = ["-", "--", ":", "-."]
    for i, (label, layers) in enumerate(spectra.items()):
        summary = _summary(layers)
        for j, (module, names) in enumerate(summary.modules.items()):
            ranks = [summary.by_layer["effective_rank"][name] for name in names.values()]
            ax.plot(list(names), ranks, color=f"C{i}", linestyle=styles[j % 4], label=f"{label}, {module}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(title=f"Effective rank of the {matrix}", xlabel="layer", ylabel="effective rank", ylim=(0, None))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=len(spectra), fontsize="small")


def panels(count: int, height: float = 4.0, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``count`` panels side by side in each row, in the style of all figures here."""
    figure = Figure(figsize=(5.5 * count, height * rows), dpi=100, layout="constrained")
    axes = list(figure.subplots(rows, count, squeeze=False).flat)
    for ax in axes:
        ax.grid(visible=True, alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _summary(layers: LayerSpectra) -> SpectralSummary:
    return summarize(layers, ranks={})  # no figure shows a measure that needs the rank


def _by_width(layers: LayerSpectra) -> dict[str, np.ndarray]:
    """Return the normalized singular values (layers, components) of layers with the same number of components.

    They are named after their modules, or are one group without a name. A mean over layers of several widths would jump
    where the narrower ones end. An update that is zero, as at the start of training, is left out.
    """
    groups: dict[int, dict[str, Tensor]] = {}
    for name, sigma in layers.items():
        if sigma.any():
            groups.setdefault(len(sigma), {})[name] = sigma / sigma.max()
    return {
        ", ".join(by_module(group)) if len(groups) > 1 else "": torch.stack(list(group.values())).numpy()
        for group in groups.values()
    }


def _padded(curves: Sequence[Tensor], fill: float) -> np.ndarray:
    """Return the curves as (layers, longest); shorter ones are padded with ``fill``."""
    longest = max((len(curve) for curve in curves), default=0)
    rows = [torch.cat([curve, curve.new_full((longest - len(curve),), fill)]).numpy() for curve in curves]
    return np.array(rows).reshape(len(rows), longest)


def _draw_line_and_shade(ax: Axes, curves: np.ndarray, label: str, log: bool = False) -> None:
    """Draw mean (geometric if ``log``) and percentiles of the curves (layers, components)."""
    components = np.arange(1, curves.shape[1] + 1)
    values = np.log(curves) if log else curves
    low, middle, high = (
        np.exp(statistic) if log else statistic
        for statistic in (np.percentile(values, 10, axis=0), values.mean(axis=0), np.percentile(values, 90, axis=0))
    )
    line = ax.plot(components, middle, label=label)[0]
    ax.fill_between(components, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _set_few_ticks(set_ticks: SetTicks, values: Sequence[int], at_most: int = 8) -> None:
    stride = -(-len(values) // at_most)
    positions = list(range(0, len(values), stride))
    set_ticks(positions, [str(values[i]) for i in positions])
