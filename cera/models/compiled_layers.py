"""Regional compilation: ``torch.compile`` of a transformer's layers, all of which share the code made for one."""

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

OPTIONS: dict[str, Any] = {"fallback_random": True}
"""For the compiler: draw dropout's masks as uncompiled layers do, so that a run is the same run with and without."""


def compile_layers(model: nn.Module) -> int:
    """Let the layers of a transformers model run compiled in training mode.

    Elementwise work (norms, rotary embeddings, activations, dropout, sums) is fused into few passes over memory.
    A layer runs as it is in eval mode, where lengths vary and little is gained, and while any of its modules has a
    hook, which compiled code would not call. The compiler does its work in the first forward and backward.

    Args:
        model: With or without adapters; modules and names stay as they are.

    Returns:
        The number of layers.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    compiled = {
        kind: torch.compile(kind.forward, dynamic=True, options=OPTIONS) for kind in {type(layer) for layer in layers}
    }
    for layer in layers:
        layer.forward = partial(_forward, layer, compiled[type(layer)])  # type: ignore[method-assign]
    return len(layers)


def _forward(layer: nn.Module, compiled: Any, *args: Any, **kwargs: Any) -> Any:
    run = compiled if layer.training and not _has_hooks(layer) else type(layer).forward
    return run(layer, *args, **kwargs)


def _has_hooks(layer: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())
