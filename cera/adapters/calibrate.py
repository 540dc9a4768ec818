"""Scales ``W_up`` so that the pre-activations of every adapted module have one size: ``CeraConfig.init="calibrated"``.

    model = get_peft_model(base, cera.CeraConfig(r=64, init="calibrated"))
    cera.calibrate(model, batches)  # a few, before training

With ``W_up`` as LoRA's A the pre-activations ``z = W_up x`` are so small (docs/variants.md) that SiLU is almost z/2
and CeRA almost a LoRA. How large they are depends on the base and the layer, so their size is measured.
"""

from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from cera.adapters.config import CeraConfig
from cera.adapters.layer import BranchLayer

INPUTS = ("input_ids", "attention_mask", "position_ids")
"""What a model is called with, of the entries of a batch."""


@torch.no_grad()
def calibrate(model: Any, batches: Iterable[Mapping[str, Any]], adapter: str = "default") -> dict[str, float]:
    """Scale each module's ``W_up`` so that its pre-activations have a root mean square of ``calibration_std``.

    Each ``W_up`` gets one factor: the target over the root mean square of ``W_up x``, taken over the tokens of all
    batches and the units of the latent, in eval mode. That is the standard deviation about zero, about which ``W_up``
    is drawn. ``W_down`` must be zero, so that no module's input depends on another's factor and the adapter stays an
    exact no-op. The result depends on weights and batches only.

    In a distributed job every process must call this with batches of its own; all get the factors of all batches.

    Args:
        model: A PEFT model with a CeRA adapter of ``init="calibrated"`` that is active and not trained yet.
        batches: Each with ``input_ids`` (batch, length), and optionally ``attention_mask``, ``position_ids`` and
            ``tokens``. ``tokens`` (or else ``attention_mask``) marks tokens; padding does not count.
        adapter: Name of the adapter.

    Returns:
        The root mean square before calibration, by the module's name in ``model``.

    Raises:
        ValueError: The adapter is not such a one, its weights are partitioned (ZeRO-3), or the batches hold no token or
            give pre-activations that are zero, NaN or infinite.
    """
    config = _checked_config(model, adapter)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, BranchLayer) and adapter in layer.branch_up
    }
    _check_weights(layers, adapter)
    sums = torch.zeros(len(layers), dtype=torch.float64, device=model.device)
    counts = torch.zeros_like(sums)
    was_training = model.training
    model.eval()
    try:
        with _hooked(layers, adapter, sums, counts) as masks:
            for batch in batches:
                mask = batch.get("tokens", batch.get("attention_mask"))
                masks.append(None if mask is None else mask.to(model.device).bool())
                inputs = {name: batch[name].to(model.device) for name in INPUTS if name in batch}
                model(**inputs, logits_to_keep=1)
    finally:
        model.train(was_training)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
        torch.distributed.all_reduce(counts)
    measured = dict(zip(layers, (sums / counts).sqrt().tolist(), strict=True))
    for name, value in measured.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"calibrate: the pre-activations of {name} have a root mean square of {value}.")
    for name, value in measured.items():
        cast(nn.Linear, layers[name].branch_up[adapter]).weight.mul_(config.calibration_std / value)
    return measured


def _checked_config(model: Any, adapter: str) -> CeraConfig:
    config = getattr(model, "peft_config", {}).get(adapter)
    if not isinstance(config, CeraConfig) or config.init != "calibrated":
        raise ValueError(f"calibrate: {adapter!r} must be a CeRA adapter with init='calibrated' of a PEFT model.")
    if model.active_adapters != [adapter]:
        raise ValueError(f"calibrate: {adapter!r} must be the only active adapter, got {model.active_adapters}.")
    return config


def _check_weights(layers: Mapping[str, BranchLayer], adapter: str) -> None:
    for name, layer in layers.items():
        up, down = (cast(nn.Linear, part[adapter]).weight for part in (layer.branch_up, layer.branch_down))
        if hasattr(up, "ds_id"):
            raise ValueError("calibrate: ZeRO-3 has partitioned the weights; calibrate without it.")
        if down.any():
            raise ValueError(f"calibrate: {name} is trained already (its W_down is not zero).")


@contextmanager
def _hooked(layers: Mapping[str, BranchLayer], adapter: str, sums: Tensor, counts: Tensor) -> Any:
    """Add up the squares and the number of each layer's pre-activations where the last of the masks yielded is true."""
    masks: list[Tensor | None] = []

    def add(i: int, name: str, _: nn.Module, args: Any, z: Tensor) -> None:
        mask = masks[-1]
        if mask is not None and z.shape[:-1] != mask.shape:
            raise ValueError(
                f"calibrate: {name} reads {tuple(z.shape[:-1])} positions of a batch of {tuple(mask.shape)}, so that "
                "padding cannot be told from tokens. Layers inside experts cannot be calibrated."
            )
        values = (z if mask is None else z[mask]).double()
        sums[i] += values.square().sum()
        counts[i] += values.numel()

    ups = [(name, cast(nn.Linear, layer.branch_up[adapter])) for name, layer in layers.items()]
    handles = [up.register_forward_hook(partial(add, i, name)) for i, (name, up) in enumerate(ups)]
    try:
        yield masks
    finally:
        for handle in handles:
            handle.remove()
