"""What a fit computes in one adapted layer: its update, the shares of its linear map, and the inputs it receives."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from cera.adapters import CeraLayer
from cera.linearize.adapter import LinearizedLayer

Batch = Mapping[str, Any]


class LayerUpdate:
    """Computes the update of one CeRA layer in fp64, in an orthonormal basis of its range.

    Args:
        name: Name of the layer in the base model.
        layer: The adapted layer.
        adapter: Name of the adapter.

    Attributes:
        basis: Q, (out, q), with q = min(r, out).
        right: s R, (q, r), where ``W_down = Q R``.
    """

    def __init__(self, name: str, layer: CeraLayer, adapter: str) -> None:
        self.name, self.layer = name, layer
        self.activation = layer.branch_activation[adapter]
        self.up = cast(nn.Linear, layer.branch_up[adapter]).weight.detach()
        down = cast(nn.Linear, layer.branch_down[adapter]).weight.detach()
        self.basis, right = torch.linalg.qr(down.double())
        self.right = right * layer.scaling[adapter]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the update (n, q) for inputs ``x`` (n, in) fp64; ``update @ basis.T`` is what CeRA adds."""
        return self.activation(x @ self.up.double().T) @ self.right.T


class FittedLayer:
    """A fitted linear map, and its residual on held-out tokens.

    Args:
        update: The layer's update.
        up: (k, in), from ``least_squares``.
        down: (q, k), from ``least_squares``.
        rank: Rank of the LoRA, at most k.
        x: Triangular factor of the inputs that the map was fitted to, (m, in).
        y: Triangular factor of the updates that the map was fitted to, (m, q).
    """

    def __init__(self, update: LayerUpdate, up: Tensor, down: Tensor, rank: int, x: Tensor, y: Tensor) -> None:
        self.update, self.up, self.down, self.rank = update, up, down, rank
        self.fit_share = _share(self._residual(x, y, rank), y.square().sum())
        self.energy = self.residual = self.any_rank_residual = y.new_zeros(())

    def _residual(self, x: Tensor, y: Tensor, rank: int) -> Tensor:
        return (y - x @ self.up[:rank].T @ self.down[:, :rank].T).square().sum()

    def measure(self, x: Tensor, y: Tensor) -> None:
        """Add held-out tokens, given their inputs (n, in) and updates (n, q)."""
        self.energy = self.energy + y.square().sum()
        self.residual = self.residual + self._residual(x, y, self.rank)
        self.any_rank_residual = self.any_rank_residual + self._residual(x, y, len(self.up))

    def result(self) -> LinearizedLayer:
        """Return the map, truncated to its rank, with its shares."""
        return LinearizedLayer(
            self.update.name,
            self.rank,
            self.fit_share,
            _share(self.residual, self.energy),
            _share(self.any_rank_residual, self.energy),
            self.up[: self.rank].float().cpu(),
            (self.update.basis @ self.down[:, : self.rank]).float().cpu(),
        )


def _share(residual: Tensor, energy: Tensor) -> float:
    """Return the share of ``energy`` that is reproduced; 1 for an update that is zero."""
    return 1.0 if energy == 0 else 1.0 - (residual / energy).item()


InputVisitor = Callable[[tuple[LayerUpdate, ...], Tensor], None]
"""Receives an input (n, in) fp64 without padding, together with the layers that share it."""


class _InputCollector:
    """Groups consecutive layers that receive the same input tensor, and passes each input to ``visit`` once."""

    def __init__(self, visit: InputVisitor) -> None:
        self.visit = visit
        self.mask: Tensor | None = None
        self._sharing: list[LayerUpdate] = []
        self._input: Tensor | None = None

    def receive(self, update: LayerUpdate, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Record the input of a layer; a forward pre-hook."""
        if args[0] is not self._input:
            self.flush()
            self._input = args[0]
        self._sharing.append(update)

    def flush(self) -> None:
        """Pass the pending input on."""
        if self._input is None:
            return
        if self.mask is not None and self.mask.shape != self._input.shape[:-1]:
            raise ValueError(
                f"{self._sharing[0].name}: its input is {tuple(self._input.shape)} on a batch of "
                f"{tuple(self.mask.shape)} tokens, so that padding cannot be told from tokens. Layers inside experts "
                "cannot be linearized."
            )
        x = self._input.flatten(0, -2) if self.mask is None else self._input[self.mask]
        self.visit(tuple(self._sharing), x.double())
        self._input = None
        self._sharing.clear()


def visit_inputs(model: nn.Module, batches: Iterable[Batch], updates: list[LayerUpdate], visit: InputVisitor) -> int:
    """Run the model, pass the inputs of the adapted layers to ``visit``, and return the number of tokens."""
    device = next(model.parameters()).device
    collector = _InputCollector(visit)
    tokens = 0
    handles = [update.layer.register_forward_pre_hook(partial(collector.receive, update)) for update in updates]
    try:
        for batch in batches:
            inputs, collector.mask, count = model_inputs(batch, device)
            tokens += count
            model(**inputs, logits_to_keep=1)
            collector.flush()
    finally:
        for handle in handles:
            handle.remove()
    return tokens


def model_inputs(batch: Batch, device: torch.device) -> tuple[dict[str, Tensor], Tensor | None, int]:
    """Return the arguments of the model for a batch, which positions are tokens, and the number of tokens.

    The mask is (batch, length) bool, from ``tokens`` or else ``attention_mask``; ``None`` if the batch has neither.
    """
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = {name: batch[name].to(device) for name in names if name in batch}
    is_token = batch.get("tokens", batch.get("attention_mask"))
    mask = None if is_token is None else is_token.to(device).bool()
    return inputs, mask, inputs["input_ids"].numel() if mask is None else int(mask.sum())
