"""Where in a PEFT model the activations lie that ``cera.spectral`` measures.

For the adapters of this package and the LoRA family the latent is the input of the down-projection, and the update
follows from it and the weight; where a projection has a bias (Houlsby), the stream has a column of ones for it.
DoRA's update is defined as its output minus the base's, ``(m / ||W0 + s B A|| - 1) W0 x +
m / ||W0 + s B A|| s B A x``; it has no latent of width r, nor have methods that are not known here: theirs is the
layer's output minus that of its base layer, which in bf16 carries the rounding of the sum.

Adapters of fused experts (``target_parameters``) are left out: each expert's branch sees only the tokens that are
routed to it, so there is no one matrix H of the layer, and LoRA's has no activations at all, being added to the weight.

A PiSSA adapter starts with the principal part of the weight in its B A: its update is that of the adapter, not what
has changed since the base.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cera.adapters import BranchLayer, CeraExperts
from cera.spectral import SpectrumAccumulator, weight_spectrum
from cera.spectral.files import Quantity
from cera.spectral.layer_names import base_name

EPSILON = 1e-5
"""AdaLoRA adds it to the number of ranks that it divides by."""


@dataclass
class Branch:
    """One adapted layer.

    Attributes:
        name: Of the layer in the model, without PEFT's wrapping.
        listen: Registers a function that gets the activations (..., k) at each forward; returns the hooks' handles.
        rank: The adapter's r in this layer; ``None`` if it has none.
        down: ``W_down`` (d, r) if the activations are the latent; ``None`` if they are the update itself.
        bias: Of ``W_down`` (d,), if it has one; then the activations have a last column of ones.
        up: For linear adapters ``W_up`` (r, in), so that ``scaling * down @ up`` is the update's weight.
        diagonal: AdaLoRA's E (r, 1), a factor on the rows of ``up``.
        scaling: The factor on the update, 1 if it is in the activations already.
    """

    name: str
    listen: Callable[[Callable[[Tensor], None]], list[RemovableHandle]]
    rank: int | None = None
    down: Tensor | None = None
    bias: Tensor | None = None
    up: Tensor | None = None
    diagonal: Tensor | None = None
    scaling: float = 1.0

    def spectra(
        self,
        stream: SpectrumAccumulator,
        quantities: Collection[Quantity],
        whole: Callable[[Tensor], Tensor] = lambda weight: weight,
    ) -> dict[Quantity, Tensor]:
        """The singular values (k,) of each of ``quantities`` that the branch has.

        Args:
            stream: What has seen the branch's activations.
            quantities: Of ``update``, ``latent`` and ``weight``.
            whole: Makes a weight whole that is spread over ranks.
        """
        found: dict[Quantity, Tensor] = {}
        down = None if self.down is None else whole(self.down)
        if "update" in quantities:
            to_update = down if down is None or self.bias is None else _append(down, whole(self.bias))
            found["update"] = stream.singular_values(to_update, self.scaling)
        if "latent" in quantities and down is not None:
            r = down.shape[1]
            found["latent"] = stream.singular_values(None if self.bias is None else torch.eye(r, r + 1))
        if "weight" in quantities and down is not None and self.up is not None:
            up = whole(self.up) if self.diagonal is None else whole(self.up) * whole(self.diagonal)
            found["weight"] = weight_spectrum(down, up, self.scaling)
        return found


def find_branches(model: nn.Module, adapter: str = "default") -> list[Branch]:
    """The branches of ``adapter`` in ``model``, in the model's order; those of fused experts are left out."""
    return [
        _branch(base_name(name), layer, adapter)
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
        and not isinstance(layer, CeraExperts | ParamWrapper)
        and adapter in layer._get_available_adapters()
    ]


def _branch(name: str, layer: Any, adapter: str) -> Branch:
    rank = layer.r.get(adapter) if isinstance(getattr(layer, "r", None), dict) else None
    if isinstance(layer, BranchLayer):
        if adapter in layer.branch_magnitude:
            return Branch(name, lambda receive: _difference(layer, receive), rank)
        return _cera(name, layer, adapter)
    if adapter in getattr(layer, "lora_E", {}):
        return _adalora(name, layer, adapter)
    if adapter in getattr(layer, "lora_magnitude_vector", {}):
        return Branch(name, lambda receive: [_on_output(layer.lora_magnitude_vector[adapter], receive)], rank)
    plain = adapter in getattr(layer, "lora_B", {}) and adapter not in layer.lora_variant
    if plain and isinstance(down := layer.lora_B[adapter], nn.Linear):
        return Branch(
            name,
            lambda receive: [down.register_forward_pre_hook(lambda _, args: receive(args[0]))],
            rank,
            down.weight,
            up=layer.lora_A[adapter].weight,
            scaling=layer.scaling[adapter],
        )
    return Branch(name, lambda receive: _difference(layer, receive), rank)


def _cera(name: str, layer: Any, adapter: str) -> Branch:
    activation, up, down = (part[adapter] for part in (layer.branch_activation, layer.branch_up, layer.branch_down))

    def receive_with_ones(receive: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        return receive if down.bias is None else lambda z: receive(_append(z, torch.ones_like(z[..., 0])))

    return Branch(
        name,
        # before dropout, so that a training batch shows the latent whole
        lambda receive: [_on_output(activation, receive_with_ones(receive))],
        layer.r[adapter],
        down.weight,
        down.bias,
        up.weight if isinstance(activation, nn.Identity) and down.bias is None else None,
        scaling=layer.scaling[adapter],
    )


def _append(matrix: Tensor, column: Tensor) -> Tensor:
    """``matrix`` (..., k) with ``column`` (...) behind its last."""
    return torch.cat([matrix, column[..., None]], dim=-1)


def _adalora(name: str, layer: Any, adapter: str) -> Branch:
    up, diagonal, down = (getattr(layer, f"lora_{letter}")[adapter] for letter in "AEB")

    def latent(x: Tensor) -> Tensor:
        return x.to(up.dtype) @ (up * diagonal).T

    return Branch(
        name,
        lambda receive: [layer.base_layer.register_forward_pre_hook(lambda _, args: receive(latent(args[0])))],
        int(up.shape[0]),
        down,
        None,
        up,
        diagonal,
        layer.scaling[adapter] / (float(layer.ranknum[adapter]) + EPSILON),
    )


def _on_output(module: nn.Module, receive: Callable[[Tensor], None]) -> RemovableHandle:
    return module.register_forward_hook(lambda _, args, output: receive(output))


def _difference(layer: Any, receive: Callable[[Tensor], None]) -> list[RemovableHandle]:
    held: list[Tensor] = []
    return [
        # a copy: some methods add their update to the base's output in place
        _on_output(layer.base_layer, lambda output: held.append(output.detach().clone())),
        _on_output(layer, lambda output: receive(output.detach().float() - held.pop().float())),
    ]
