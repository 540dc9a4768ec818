"""Regional compilation: ``torch.compile`` of a transformer's layers, which share one compiled function."""

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

OPTIONS: dict[str, Any] = {"fallback_random": True}
"""Compiler options: dropout masks are drawn as in uncompiled layers, so that compiling does not change a run."""


def compile_layers(model: nn.Module) -> int:
    """Compile the layers of a transformers model for training mode.

    Elementwise work (norms, rotary embeddings, activations, dropout, sums) is fused into few passes over memory.
    A layer runs uncompiled in eval mode, where lengths vary and little is gained, and while any of its modules has a
    hook, which compiled code would not call. Compilation happens in the first forward and backward.

    Args:
        model: A model with or without adapters; its modules and their names do not change.

    Returns:
        The number of compiled layers.
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
