"""Hooks that read the activations of an adapter in a PEFT model.

``find_branches`` returns a ``Branch`` for each adapted layer. Its ``attach`` hooks the layer's activations, and its
``spectra`` turns what an accumulator has seen of them into singular values:

    for branch in find_branches(model):
        accumulator = SpectrumAccumulator(branch.name)
        handles = branch.attach(accumulator.update)

Which activations a branch reads depends on the method:

- For the adapters of this package and for LoRA and AdaLoRA they are the latent, the input of the down-projection. The
  update follows from it and the weight of that projection. If the projection has a bias (Houlsby), a column of ones is
  appended to the latent.
- DoRA has no latent of width r. Its update is ``(m / ||W0 + s B A|| - 1) W0 x + m / ||W0 + s B A|| s B A x``, the
  output of PEFT's DoRA layer.
- For all other methods they are the update itself, as the layer's output minus that of its base layer. In bf16 it
  carries the rounding of that sum.

Adapters of fused experts (``target_parameters``) are left out: each expert's branch sees only the tokens that are
routed to it, so the layer has no single matrix H, and LoRA adds to the expert's weight and has no activations.

A PiSSA adapter starts with the principal part of the weight in its B A: what is measured is the update of the adapter,
not the change of the layer since the start.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cera.adapters import BranchLayer, CeraExperts
from cera.spectral.accumulator import SpectrumAccumulator
from cera.spectral.files import Quantity
from cera.spectral.layer_names import base_name
from cera.spectral.measures import weight_spectrum

ActivationSink = Callable[[Tensor], None]
"""Receives the activations (..., k) of a layer at each forward pass."""

AttachHook = Callable[[ActivationSink], list[RemovableHandle]]
"""Registers a sink with a layer and returns the handles that remove it."""

GatherWeight = Callable[[Tensor], Tensor]
"""Returns a weight in full that may be partitioned over ranks (ZeRO-3)."""

ADALORA_EPSILON = 1e-5
"""Constant that AdaLoRA adds to the number of ranks before it divides by it."""


def unpartitioned(weight: Tensor) -> Tensor:
    """Return ``weight``, which is not partitioned, as it is."""
    return weight


@dataclass
class Branch:
    """The adapter of one layer.

    Attributes:
        name: Name of the layer in the base model.
        attach: Registers a function that receives the layer's activations.
        rank: The adapter's r in this layer; ``None`` if it has none.
        down: ``W_down`` (d, r) if the activations are the latent; ``None`` if they are the update itself.
        bias: Bias of ``W_down`` (d,), if it has one; the activations then end with a column of ones.
        up: For linear adapters ``W_up`` (r, in), so that ``scaling * down @ up`` is the weight of the update.
        diagonal: AdaLoRA's E (r, 1), which scales the rows of ``up``.
        scaling: Factor ``s`` on the update; 1 if the activations include it.
    """

    name: str
    attach: AttachHook
    rank: int | None = None
    down: Tensor | None = None
    bias: Tensor | None = None
    up: Tensor | None = None
    diagonal: Tensor | None = None
    scaling: float = 1.0

    def spectra(
        self,
        accumulator: SpectrumAccumulator,
        quantities: Collection[Quantity],
        gather: GatherWeight = unpartitioned,
    ) -> dict[Quantity, Tensor]:
        """Return the singular values (k,) of each of ``quantities`` that the branch has.

        Args:
            accumulator: Has received the branch's activations.
            quantities: Any of ``update``, ``latent`` and ``weight``.
            gather: Called with each weight that is read.
        """
        spectra: dict[Quantity, Tensor] = {}
        down = None if self.down is None else gather(self.down)
        if "update" in quantities:
            projection = down if down is None or self.bias is None else _append_column(down, gather(self.bias))
            spectra["update"] = accumulator.singular_values(projection, self.scaling)
        if "latent" in quantities and down is not None:
            r = down.shape[1]
            without_ones = None if self.bias is None else torch.eye(r, r + 1)
            spectra["latent"] = accumulator.singular_values(without_ones)
        if "weight" in quantities and down is not None and self.up is not None:
            up = gather(self.up) if self.diagonal is None else gather(self.up) * gather(self.diagonal)
            spectra["weight"] = weight_spectrum(down, up, self.scaling)
        return spectra


def find_branches(model: nn.Module, adapter: str = "default") -> list[Branch]:
    """Return the branches of ``adapter`` in the order of the model's modules, without those of fused experts."""
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
        if adapter in layer.branch_magnitude:  # the hybrid with DoRA
            return Branch(name, lambda sink: _attach_to_difference(layer, sink), rank)
        return _cera_branch(name, layer, adapter)
    if adapter in getattr(layer, "lora_E", {}):
        return _adalora_branch(name, layer, adapter)
    if adapter in getattr(layer, "lora_magnitude_vector", {}):
        return Branch(name, lambda sink: [_attach_to_output(layer.lora_magnitude_vector[adapter], sink)], rank)
    if adapter in getattr(layer, "lora_B", {}) and adapter not in layer.lora_variant:
        down = layer.lora_B[adapter]
        if isinstance(down, nn.Linear):
            return _lora_branch(name, layer, adapter, rank, down)
    return Branch(name, lambda sink: _attach_to_difference(layer, sink), rank)


def _cera_branch(name: str, layer: BranchLayer, adapter: str) -> Branch:
    activation = layer.branch_activation[adapter]
    up, down = (cast(nn.Linear, part[adapter]) for part in (layer.branch_up, layer.branch_down))

    def attach(sink: ActivationSink) -> list[RemovableHandle]:
        def receive(latent: Tensor) -> None:
            sink(latent if down.bias is None else _append_column(latent, torch.ones_like(latent[..., 0])))

        # The activation comes before dropout, so the latent is complete in training mode, too.
        return [_attach_to_output(activation, receive)]

    return Branch(
        name,
        attach,
        layer.r[adapter],
        down.weight,
        down.bias,
        up.weight if isinstance(activation, nn.Identity) and down.bias is None else None,
        scaling=layer.scaling[adapter],
    )


def _lora_branch(name: str, layer: Any, adapter: str, rank: int | None, down: nn.Linear) -> Branch:
    return Branch(
        name,
        lambda sink: [down.register_forward_pre_hook(lambda _, args: sink(args[0]))],
        rank,
        down.weight,
        up=layer.lora_A[adapter].weight,
        scaling=layer.scaling[adapter],
    )


def _adalora_branch(name: str, layer: Any, adapter: str) -> Branch:
    up, diagonal, down = (getattr(layer, f"lora_{letter}")[adapter] for letter in "AEB")

    def latent(x: Tensor) -> Tensor:
        return x.to(up.dtype) @ (up * diagonal).T

    return Branch(
        name,
        lambda sink: [layer.base_layer.register_forward_pre_hook(lambda _, args: sink(latent(args[0])))],
        int(up.shape[0]),
        down,
        None,
        up,
        diagonal,
        layer.scaling[adapter] / (float(layer.ranknum[adapter]) + ADALORA_EPSILON),
    )


def _attach_to_output(module: nn.Module, sink: ActivationSink) -> RemovableHandle:
    return module.register_forward_hook(lambda _, args, output: sink(output))


def _attach_to_difference(layer: Any, sink: ActivationSink) -> list[RemovableHandle]:
    """Attach ``sink`` to the layer's output minus its base layer's."""
    base_outputs: list[Tensor] = []
    return [
        # The copy is needed because some methods add their update to the base's output in place.
        _attach_to_output(layer.base_layer, lambda output: base_outputs.append(output.detach().clone())),
        _attach_to_output(layer, lambda output: sink(output.detach().float() - base_outputs.pop().float())),
    ]


def _append_column(matrix: Tensor, column: Tensor) -> Tensor:
    """Return ``matrix`` (..., k) with ``column`` (...) appended, (..., k + 1)."""
    return torch.cat([matrix, column[..., None]], dim=-1)
