"""Builds the model that is trained: the frozen base with the adapter in it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model

from cera.models.backbone import Quantization, load_model
from cera.models.compiled_layers import compile_layers as compile_layers_of


def adapted_model(
    base: str,
    adapter: PeftConfig,
    dtype: torch.dtype,
    loading: AbstractContextManager,
    fp32_adapter: bool = False,
    quantization: Quantization | None = None,
    attn_implementation: str | None = None,
    gradient_checkpointing: bool = False,
    compile_layers: bool = False,
    load: Callable[..., Any] = load_model,
) -> PeftModel:
    """Load the base and apply the adapter.

    Args:
        base: Name of the base model, as ``cera.models.backbone`` reads it.
        adapter: PEFT configuration, which PEFT may change.
        dtype: Data type of the base, and of the adapter unless ``fp32_adapter``.
        loading: Context in which the base is loaded; under ZeRO-3 it partitions the weights.
        fp32_adapter: Keep the adapter in fp32.
        quantization: See ``cera.models.backbone.load_model``.
        attn_implementation: See ``cera.models.backbone.load_model``.
        gradient_checkpointing: Recompute activations in the backward pass.
        compile_layers: Train with compiled layers.
        load: Loads the base; see ``cera.models.backbone.load_model``.

    Returns:
        The model in training mode: transformers loads in eval mode, where dropout and checkpointing do nothing.
    """
    with loading:
        frozen = load(base, dtype, quantization, attn_implementation)
    model = get_peft_model(frozen, adapter, autocast_adapter_dtype=fp32_adapter)
    # the name that the user gave, not the path of a converted copy in this machine's cache
    model.peft_config["default"].base_model_name_or_path = base
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if compile_layers:
        compile_layers_of(model)
    return model.train()
