"""Fits affine maps to the activations of a trained adapter, and puts their parts in the activations' place.

    fits = cera.interventions.fit(model, calibration_batches, held_out=other_batches)
    with cera.interventions.intervened(model, fits, "affine", level="full"):
        model(input_ids)  # every branch computes W_down(C W_up x + b)

Only the activation module of a layer is exchanged, so that all else is the model's own forward pass.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cera.adapters.experts import CeraExperts
from cera.adapters.layer import BranchLayer
from cera.interventions.affine import LEVELS, AffineMap, Energies, LatentFactor, Level
from cera.linearize.fit import Progress, silent
from cera.linearize.layers import Batch, model_inputs
from cera.spectral import SpectrumAccumulator
from cera.spectral.layer_names import base_name, layer_labels

Part = Literal["whole", "none", "gain", "offset", "affine", "curvature"]
"""What stands in an activation's place: all of it, nothing, or a part of it."""
PARTS: tuple[Part, ...] = get_args(Part)
ROWS_PER_COLUMN = 8
"""Tokens wait until they are this many times as many as the columns of a factor, which saves QR decompositions."""


class InterventionError(ValueError):
    """A model or an argument does not allow the intervention; the message says why and what would."""


@dataclass(frozen=True)
class LayerFit:
    """The maps that come closest to the activation of one layer.

    Attributes:
        name: Name of the layer in the base model.
        maps: The map of each level.
        calibration: Shares of the maps' parts on the data of the fit, by level.
        held_out: The same on other data; empty without any.
        tokens: Number of tokens of the fit.
    """

    name: str
    maps: dict[Level, AffineMap]
    calibration: dict[Level, Energies]
    held_out: dict[Level, Energies]
    tokens: int


class Replacement(nn.Module):
    """A part of an activation, as a module in its place.

    Args:
        activation: The activation.
        fitted: Its affine map.
        part: The part to compute.
    """

    def __init__(self, activation: nn.Module, fitted: AffineMap, part: Part) -> None:
        super().__init__()
        self.activation, self.fitted, self.part = activation, fitted, part

    def forward(self, z: Tensor) -> Tensor:
        """Return the part for pre-activations (..., r); maps are computed in fp32 or z's wider dtype."""
        if self.part == "whole":
            return self.activation(z)
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        if self.part == "none":
            part = torch.zeros_like(wide)
        elif self.part == "gain":
            part = self.fitted.gain(wide)
        elif self.part == "offset":
            part = self.fitted.offset.to(wide.device, wide.dtype).expand_as(wide)
        elif self.part == "affine":
            part = self.fitted(wide)
        else:
            part = self.activation(wide) - self.fitted(wide)
        return part.to(z.dtype)


@torch.no_grad()
def fit(
    model: nn.Module,
    data: Iterable[Batch],
    held_out: Iterable[Batch] = (),
    adapter: str = "default",
    layers: Iterable[int] | None = None,
    progress: Progress = silent,
) -> dict[str, LayerFit]:
    """Fit the maps of all levels to the activation of each layer of an adapter.

    Each layer is fitted to the pre-activations that it has in the unchanged model. The model is not changed.

    Args:
        model: A PEFT model with ``adapter`` active: CeRA at linear layers or modules, or a Houlsby or parallel adapter.
        data: Batches with ``input_ids`` (batch, length) and optionally ``position_ids`` and ``attention_mask``.
            ``tokens`` (or else ``attention_mask``) marks tokens; padding does not count.
        held_out: Further batches, to measure the shares of the parts on.
        adapter: Name of the adapter.
        layers: Numbers of the model's layers to fit; ``None`` takes all.
        progress: Shows the progress of each part of the work.

    Returns:
        The fits by the layers' names, in the model's order.

    Raises:
        InterventionError: The adapter has no branch with an activation, there is no such layer, or too few tokens.
        cera.spectral.NonFiniteError: An activation is NaN or infinite.
    """
    branches = _chosen(_branches(model, adapter), layers)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        factors, tokens = _factors(model, progress(list(data), "activations of the fit"), branches, adapter)
        widest = max(branch.r[adapter] for branch in branches.values())
        if tokens <= widest + 1:
            raise InterventionError(
                f"the data of the fit have {tokens} tokens, which a full map of r={widest} fits whatever the "
                "activation: take more rows."
            )
        other = list(held_out)
        held_factors: dict[str, LatentFactor] = {}
        if other:
            held_factors, _ = _factors(model, progress(other, "activations held out"), branches, adapter)
    finally:
        for module, mode in modes.items():
            module.training = mode
    fits = {}
    for name in progress(list(factors), "least squares"):
        maps = {level: factors[name].fit(level) for level in LEVELS}
        calibration, held = (
            {level: factor[name].energies(maps[level]) for level in LEVELS} if factor else {}
            for factor in (factors, held_factors)
        )
        fits[name] = LayerFit(name, maps, calibration, held, tokens)
    return fits


@contextmanager
def intervened(
    model: nn.Module, fits: Mapping[str, LayerFit], part: Part, level: Level = "full", adapter: str = "default"
) -> Iterator[None]:
    """Put a part of the activation in its place during a ``with`` block, in the layers of ``fits``.

    Args:
        model: The model that was fitted.
        fits: The result of ``fit``, or a part of it: other layers are left as they are.
        part: ``"whole"`` changes nothing, ``"none"`` switches the branches off.
        level: Level of the map.
        adapter: Name of the adapter.

    Raises:
        InterventionError: There is no such part or level, or the model lacks a layer.
    """
    if part not in PARTS or level not in LEVELS:
        raise InterventionError(
            f"part must be one of {', '.join(PARTS)} and level one of {', '.join(LEVELS)}, got {part!r} and {level!r}."
        )
    branches = _branches(model, adapter)
    if missing := fits.keys() - branches.keys():
        raise InterventionError(f"the model has no adapted layer {', '.join(sorted(missing))}.")
    originals = {name: branches[name].branch_activation[adapter] for name in fits}
    try:
        for name, activation in originals.items():
            replacement = Replacement(activation, fits[name].maps[level], part)
            branches[name].branch_activation[adapter] = replacement
        yield
    finally:
        for name, activation in originals.items():
            branches[name].branch_activation[adapter] = activation


def _branches(model: nn.Module, adapter: str) -> dict[str, BranchLayer]:
    """Return the adapted layers by their names in the base model."""
    if any(isinstance(module, CeraExperts) for module in model.modules()):
        raise InterventionError("interventions on the branches of experts are not supported: only on linear layers.")
    branches = {
        base_name(name): module
        for name, module in model.named_modules()
        if isinstance(module, BranchLayer) and adapter in module.branch_up
    }
    if not branches:
        raise InterventionError(
            f"the model has no branch of an adapter {adapter!r} with an activation: it must be CeRA, Houlsby or "
            "parallel."
        )
    inactive = [
        name for name, layer in branches.items() if layer.disable_adapters or layer.active_adapters != [adapter]
    ]
    if inactive:
        raise InterventionError(
            f"adapter {adapter!r} must be the only active one: call set_adapter({adapter!r}) first."
        )
    return branches


def _chosen(branches: dict[str, BranchLayer], layers: Iterable[int] | None) -> dict[str, BranchLayer]:
    """Return the branches in the layers of these numbers."""
    if layers is None:
        return branches
    numbers = {name: number for name, (number, _) in layer_labels(branches).items()}
    wanted = set(layers)
    if unknown := wanted - set(numbers.values()):
        known = ", ".join(map(str, sorted(set(numbers.values()))))
        raise InterventionError(f"layers must be among {known}, got {', '.join(map(str, sorted(unknown)))}.")
    return {name: branch for name, branch in branches.items() if numbers[name] in wanted}


class _Latents:
    """Collects [1 z y] of one layer, with y computed from z in fp64."""

    def __init__(self, name: str, activation: nn.Module) -> None:
        self.stream = SpectrumAccumulator(name)
        self.activation = activation
        self.waiting: list[Tensor] = []

    def receive(self, z: Tensor) -> None:
        """Add the pre-activations (n, r) of n tokens."""
        z = z.double()
        self.waiting.append(torch.cat([z.new_ones(len(z), 1), z, self.activation(z)], dim=1))
        if sum(map(len, self.waiting)) >= ROWS_PER_COLUMN * self.waiting[0].shape[1]:
            self.flush()

    def flush(self) -> None:
        """Add what waits to the factor."""
        if self.waiting:
            self.stream.update(torch.cat(self.waiting))
            self.waiting.clear()

    def factor(self) -> LatentFactor:
        """Return the factor of all tokens."""
        self.flush()
        if self.stream.factor is None:
            raise InterventionError(f"{self.stream.name}: no token of the data reaches this layer.")
        return LatentFactor(self.stream.factor)


def _factors(
    model: nn.Module, batches: Iterable[Batch], branches: dict[str, BranchLayer], adapter: str
) -> tuple[dict[str, LatentFactor], int]:
    """Run the model; return the factor of each layer, and the number of tokens."""
    device = next(model.parameters()).device
    latents = {name: _Latents(name, layer.branch_activation[adapter]) for name, layer in branches.items()}
    mask: Tensor | None = None
    tokens = 0

    def receive(name: str, _: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
        if mask is not None and mask.shape != z.shape[:-1]:
            raise InterventionError(
                f"{name}: its latent is {tuple(z.shape)} on a batch of {tuple(mask.shape)} tokens, so that padding "
                "cannot be told from tokens."
            )
        latents[name].receive(z.flatten(0, -2) if mask is None else z[mask])

    handles = [
        layer.branch_up[adapter].register_forward_hook(partial(receive, name)) for name, layer in branches.items()
    ]
    try:
        for batch in batches:
            inputs, mask, count = model_inputs(batch, device)
            tokens += count
            model(**inputs, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return {name: latent.factor() for name, latent in latents.items()}, tokens
