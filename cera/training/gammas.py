"""The trained scalars of the activation ``learned_mix``, for the loggers."""

import re
from statistics import fmean

from torch import nn

from cera.adapters.activations import LearnedMix
from cera.spectral.layer_names import by_module


def gammas(model: nn.Module) -> dict[str, float]:
    """Return each gamma as ``gamma_by_layer/MODULE/LAYER``, and their mean as ``gamma/mean``; nothing if there is none.

    Beside fused experts MODULE is the parameter, whose experts share a gamma. Gammas are too small for ZeRO-3 to
    partition, so they can be read on every rank.
    """
    values = {}
    for name, module in model.named_modules():
        place = re.fullmatch(r"(?:.*\.)?base_model\.model\.(.+)\.[a-z]+_(\w+)\.default(?:\.activation)?", name)
        if place and isinstance(module, LearnedMix):
            layer, part = place.groups()
            values[layer if part == "activation" else f"{layer}.{part}"] = module.gamma.item()
    if not values:
        return {}
    by_layer = {
        f"gamma_by_layer/{module}/{number}": values[name]
        for module, names in by_module(values).items()
        for number, name in names.items()
    }
    return {"gamma/mean": fmean(values.values()), **by_layer}
