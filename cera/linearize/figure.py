"""Draws the share of each layer's update that a linearization reproduces, and the share that it loses."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cera.linearize.adapter import Linearization
from cera.spectral.figures import FLOOR, panels
from cera.spectral.layer_names import by_module


def figure(linearization: Linearization) -> Figure:
    """Draw the held-out shares of all layers: reproduced (left), and lost on a log scale (right).

    A dashed line shows the best map of any rank where it differs from the LoRA's rank.
    """
    drawn, (reproduced, lost) = panels(2)
    by_name = {layer.name: layer for layer in linearization.layers}
    for i, (module, names) in enumerate(by_module(by_name).items()):
        layers = [by_name[name] for name in names.values()]
        lines = {"": [layer.held_out_share for layer in layers]}
        if any(layer.any_rank_share != layer.held_out_share for layer in layers):
            lines[", any rank"] = [layer.any_rank_share for layer in layers]
        for (suffix, shares), style in zip(lines.items(), ("o-", "--"), strict=False):
            options: dict[str, Any] = {"markersize": 3, "color": f"C{i}", "label": module + suffix}
            reproduced.plot(list(names), shares, style, **options)
            lost.plot(list(names), [max(1 - share, FLOOR) for share in shares], style, **options)
    reproduced.axhline(1, color="0.4", linestyle="--", linewidth=1)
    reproduced.set(
        title=f"Energy of CeRA's update that a LoRA of rank {linearization.config.r} reproduces", ylabel="share"
    )
    reproduced.set_ylim(min(0, reproduced.get_ylim()[0]), 1.03)
    reproduced.legend(loc="lower left")
    lost.set(title="Energy that it loses", ylabel="share lost", yscale="log")
    for ax in (reproduced, lost):
        ax.set_xlabel("layer")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return drawn
