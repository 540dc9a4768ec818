"""Fits affine maps to the activations of a trained adapter, from the pre-activations of real tokens.

fits = cera.interventions.fit(model, calibration_batches, held_out=other_batches)
with cera.interventions.intervened(model, fits, "affine", level="full"):
    model(input_ids)  # every branch computes W_down(C W_up x + b)
"""

import copy
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from cera.adapters import BranchLayer
from cera.interventions.affine import LEVELS, LatentFactor, LayerFit
from cera.interventions.replacement import InterventionError, find_branches, in_layers
from cera.linearize.fit import Progress, silent
from cera.linearize.layers import Batch, model_inputs
from cera.models.eval_mode import eval_mode
from cera.spectral import SpectrumAccumulator

ROWS_PER_COLUMN = 8
"""Tokens wait until they are this many times as many as the columns of a factor, which saves QR decompositions."""


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
    branches = in_layers(find_branches(model, adapter), layers)
    with eval_mode(model):
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
    fits = {}
    for name in progress(list(factors), "least squares"):
        maps = {level: factors[name].fit(level) for level in LEVELS}
        calibration, held = (
            {level: factor[name].energies(maps[level]) for level in LEVELS} if factor else {}
            for factor in (factors, held_factors)
        )
        fits[name] = LayerFit(name, maps, calibration, held, tokens)
    return fits


class _Latents:
    """Collects [1 z y] of one layer, with y computed from z in fp64."""

    def __init__(self, name: str, activation: nn.Module) -> None:
        self.stream = SpectrumAccumulator(name)
        self.activation = copy.deepcopy(activation).double()  # it may have weights of its own
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
        factor = self.stream.factor
        if factor is None:
            raise InterventionError(f"{self.stream.name}: no token of the data reaches this layer.")
        return LatentFactor(factor)


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
