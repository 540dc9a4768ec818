"""Fits the best linear replacement of a trained CeRA adapter, and measures how much of the update it reproduces.

    linearization = cera.linearize(model, batches)
    print(linearization.held_out_share)

A CeRA adapter cannot be merged: its update ``U = s act(X W_up^T) W_down^T`` (paper Eq. 2, one row per token) is not
linear in the layer's input ``X``. On given data there is nevertheless a best linear map of rank r', that of
reduced-rank regression:

    minimize ||X W^T - U||_F^2  over W of rank r'  :  W = B A,  B = Q V,  A = V^T C^T,  C = X^+ Y

where ``W_down = Q R`` is a thin QR decomposition, ``Y = s act(X W_up^T) R^T`` is the update in the basis ``Q`` (tokens
x min(r, out)), and ``V`` holds the r' leading right singular vectors of ``X C``. ``U`` lies in the range of ``W_down``,
so at r' = r, the default, only the non-linear part of the update is lost. The residual is orthogonal to the fit, and
the share of the energy that the map reproduces, ``||X W^T||^2 / ||U||^2``, is 1 exactly where the adapter is linear on
the data. One minus this share measures how non-linear the trained adapter is; the paper does not report it. (A bias
does not count as linear, since LoRA has none.)

Accuracy: activations are not stored. The columns ``[X Y]`` are streamed into their triangular factor
(``cera.spectral.SpectrumAccumulator``), which poses the same least-squares problem; moments such as ``X^T X`` would
square the condition number. Singular values below ``max(shape) * 2.2e-16`` of the largest are zero in fp64 and are
dropped, so directions absent from the data (fewer tokens than inputs, dead features) get a zero in ``A``. There is no
ridge penalty. The update is computed in fp64 from the layer inputs that the model produces in its own precision, so
rounding of a bf16 latent does not count as non-linearity.

A map fitted to few tokens follows their noise: with n tokens and d inputs, chance explains about d / n of the residual,
and all of it where n <= d. The share is therefore also measured on batches held out of the fit, which is the number to
quote.

Memory: ``8 (in + q)^2`` bytes for each input that layers share, where q is the sum of their ranks, and about six times
that for the one being updated or solved. Llama-3-8B at r=128, whose queries and values share their input, takes 152 MB
for each of 32 layers. ``layers_at_a_time`` bounds the total at the price of one pass over the data per group. Each
batch costs one QR decomposition of (tokens + in + q) x (in + q) per shared input, so larger batches are cheaper; the
final solution takes one SVD of an ``in`` x ``in`` matrix each, on the CPU.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cera.adapters import CeraConfig, CeraLayer
from cera.linearize.adapter import Linearization, LinearizedLayer, lora_config, saved_modules
from cera.linearize.layers import Batch, FittedLayer, LayerUpdate, visit_inputs
from cera.linearize.least_squares import least_squares
from cera.spectral import SpectrumAccumulator
from cera.spectral.layer_names import base_name

HOLD_OUT_EVERY = 4
"""One batch in this many is held out of the fit, beginning with the first."""

Progress = Callable[[list[Any], str], Iterable[Any]]
"""Yields the items of a list one by one, and shows how far the work that it describes has come."""


def silent(items: list[Any], what: str) -> Iterable[Any]:
    """Yield the items and show nothing."""
    return items


def linearize(
    model: nn.Module,
    data: Iterable[Batch],
    rank: int | None = None,
    adapter: str = "default",
    held_out: Iterable[Batch] | None = None,
    layers_at_a_time: int | None = None,
    progress: Progress = silent,
) -> Linearization:
    """Fit a LoRA to the update of each layer of a CeRA adapter, by least squares over the tokens of ``data``.

    Each layer is fitted to the inputs that it receives in the model with the CeRA adapter active. The model is not
    changed.

    Args:
        model: A PEFT model with ``adapter`` as its only active adapter. It may be quantized and in any precision.
        data: Batches with ``input_ids`` (batch, length) and optionally ``position_ids`` and ``attention_mask``.
            ``tokens`` (or else ``attention_mask``) marks tokens; padding does not count.
        rank: Upper bound for the rank of the LoRA in each layer; ``None`` takes each layer's r.
        adapter: Name of the CeRA adapter.
        held_out: Batches to measure on; ``None`` holds every fourth batch of ``data`` out of the fit.
        layers_at_a_time: Number of layers fitted in one pass over the data, to save memory; ``None`` takes all.
        progress: Shows the progress of each part of the work.

    Raises:
        ValueError: The adapter is not a CeRA adapter or not active, there are too few batches, or a number is out of
            its range.
        cera.spectral.NonFiniteError: A layer's input or update is NaN or infinite.
    """
    for field, value in (("rank", rank), ("layers_at_a_time", layers_at_a_time)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{field} must be a positive integer, got {value!r}.")
    config = _checked_config(model, adapter)
    fit_batches, held_out = _split(data, held_out)
    updates = [
        LayerUpdate(base_name(name), layer, adapter)
        for name, layer in model.named_modules()
        if isinstance(layer, CeraLayer) and adapter in layer.branch_up
    ]
    size = layers_at_a_time or len(updates)
    was_training = model.training
    model.eval()
    try:
        groups = [
            _fit_group(
                model,
                updates[i : i + size],
                progress(fit_batches, f"inputs of layers {i + 1} to {min(i + size, len(updates))} of {len(updates)}"),
                held_out,
                rank,
                progress,
            )
            for i in range(0, len(updates), size)
        ]
    finally:
        model.train(was_training)
    layers = [layer for group, _ in groups for layer in group]
    transposed = any(isinstance(update.layer.get_base_layer(), Conv1D) for update in updates)
    return Linearization(
        layers, lora_config(model, config, layers, transposed), saved_modules(model, adapter), groups[0][1]
    )


def _split(data: Iterable[Batch], held_out: Iterable[Batch] | None) -> tuple[list[Batch], list[Batch]]:
    """Return the batches to fit to and those to measure on; see ``linearize``."""
    fit_batches = list(data)  # token ids are small; activations are not
    if held_out is None:
        held_out = fit_batches[::HOLD_OUT_EVERY]
        fit_batches = [batch for i, batch in enumerate(fit_batches) if i % HOLD_OUT_EVERY]
    held_out = list(held_out)
    if not fit_batches or not held_out:
        raise ValueError(
            f"There are {len(fit_batches)} batches to fit to and {len(held_out)} to hold out; at least one of each is "
            "required."
        )
    return fit_batches, held_out


def can_linearize(config: PeftConfig) -> bool:
    """Return whether ``config`` is a weight-level CeRA, without experts and without DoRA."""
    if not isinstance(config, CeraConfig):
        return False
    return config.granularity == "weight" and not config.target_parameters and not config.use_dora


@torch.no_grad()
def _fit_group(
    model: nn.Module,
    updates: list[LayerUpdate],
    fit_batches: Iterable[Batch],
    held_out: list[Batch],
    rank: int | None,
    progress: Progress,
) -> tuple[list[LinearizedLayer], tuple[int, int]]:
    """Fit some layers; return them with the number of tokens fitted to and the number held out."""
    streams: dict[tuple[LayerUpdate, ...], SpectrumAccumulator] = {}

    def accumulate(sharing: tuple[LayerUpdate, ...], x: Tensor) -> None:
        if sharing not in streams:
            streams[sharing] = SpectrumAccumulator(", ".join(update.name for update in sharing))
        streams[sharing].update(torch.cat([x, *(update(x) for update in sharing)], dim=-1))

    fit_tokens = visit_inputs(model, fit_batches, updates, accumulate)
    fitted: dict[str, FittedLayer] = {}
    for sharing, stream in progress(list(streams.items()), "least squares"):
        factor = stream.factor
        assert factor is not None
        x, *ys = factor.split([sharing[0].layer.in_features, *(len(u.right) for u in sharing)], dim=-1)
        for update, y, (up, down) in zip(sharing, ys, least_squares(x, *ys), strict=True):
            if update.name in fitted:
                raise ValueError(f"{update.name} shares its input with other layers in some forwards and not in all.")
            fitted[update.name] = FittedLayer(update, up, down, min(rank or len(up), len(up)), x, y)
    unused = [update.name for update in updates if update.name not in fitted]
    if unused:
        raise ValueError(f"{', '.join(unused)}: no token of the data reaches this layer.")

    def measure(sharing: tuple[LayerUpdate, ...], x: Tensor) -> None:
        for update in sharing:
            fitted[update.name].measure(x, update(x))

    held_out_tokens = visit_inputs(model, progress(held_out, "held-out rows"), updates, measure)
    return [fitted[update.name].result() for update in updates], (fit_tokens, held_out_tokens)


def _checked_config(model: nn.Module, adapter: str) -> CeraConfig:
    """Return the adapter's configuration; raise ``ValueError`` if it cannot be linearized."""
    if not isinstance(model, PeftModel):
        raise ValueError(f"model must be a PeftModel with a CeRA adapter, got a {type(model).__name__}.")
    if adapter not in model.peft_config:
        raise ValueError(f"adapter {adapter!r} is not in the model, which has {', '.join(model.peft_config)}.")
    config = model.peft_config[adapter]
    if not isinstance(config, CeraConfig):
        raise ValueError(
            f"adapter {adapter!r} is a {type(config).__name__}. Only CeRA beside linear layers can be linearized "
            "(cera.CeraConfig with granularity='weight')."
        )
    if not can_linearize(config):
        raise ValueError(
            f"adapter {adapter!r} has granularity={config.granularity!r}, use_dora={config.use_dora} and "
            f"target_parameters={config.target_parameters}. It must be CeRA beside linear layers only: "
            "granularity='weight', no hybrid with DoRA and no experts."
        )
    if model.active_adapters != [adapter]:
        raise ValueError(
            f"adapter {adapter!r} must be the only active one, but {', '.join(model.active_adapters)} is active: call "
            f"model.set_adapter({adapter!r}) first."
        )
    return config
