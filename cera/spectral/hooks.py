"""Hooks that read the activations of an adapter in a PEFT model.

``find_branches`` returns a ``Branch`` for each adapted layer. Its ``attach`` hooks the layer, and its ``spectra`` turns
what an accumulator has seen into singular values:

    for branch in find_branches(model):
        accumulator = SpectrumAccumulator(branch.name)
        weights = branch.read_weights()
        handles = branch.attach(accumulator.update)

Everything is computed in high precision from the input that the layer, or its up-projection, had in the forward pass;
what the layer computed in bf16 is not used. Which activations a branch passes on depends on its form:

- Where the update is ``s * W_down(latent)``, they are the latent: for the adapters of this package, and for LoRA and
  AdaLoRA in PEFT's own linear layers. If ``W_down`` has a bias (Houlsby), a column of ones is appended. This is the
  fast route. It is taken only for the classes of layers and the settings whose formula is known.
- All other layers (LoRA with a bias or a variant such as DoRA, any other method, subclasses) take the exact route:
  they are the update itself; see ``cera.spectral.exact``.

The weights that turn latents into the update must be those of the forward pass: ``read_weights`` is called before it.

Adapters of fused experts (``target_parameters``) are left out: each expert's branch sees only the tokens that are
routed to it, so the layer has no single matrix H, and LoRA adds to the expert's weight and has no activations. Trained
tokens (``trainable_token_indices``) are rows of an embedding and no adapter.

A PiSSA adapter starts with the principal part of the weight in its B A: what is measured is the update of the adapter,
not the change of the layer since the start.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners import lora
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from cera.adapters import BranchLayer, CeraExperts, CeraLayer
from cera.adapters.module_layer import ModuleLayer
from cera.spectral.accumulator import SpectrumAccumulator
from cera.spectral.branch_weights import BranchWeights, read_weights
from cera.spectral.exact import GatherWeight, exact_update, generator_states, isolated, unpartitioned
from cera.spectral.files import CENTRED, Quantity
from cera.spectral.layer_names import base_name

ActivationSink = Callable[[Tensor], None]
"""Receives the activations (..., k) of a layer at each forward pass."""

ComputeActivations = Callable[[Any, dict[str, Any]], Tensor | None]
"""Maps positional and keyword arguments of a module to the activations (..., k), or to ``None`` if there are none."""

QUANTIZED_LORA = tuple(
    f"peft.tuners.lora.{name}" for name in ("bnb", "gptq", "awq", "aqlm", "eetq", "hqq", "inc", "torchao")
)
"""Modules of PEFT whose layers compute LoRA as its plain linear layer does, beside a quantized base."""

ADALORA_LAYERS = (
    "peft.tuners.adalora.layer.SVDLinear",
    "peft.tuners.adalora.bnb.SVDLinear8bitLt",
    "peft.tuners.adalora.bnb.SVDLinear4bit",
    "peft.tuners.adalora.gptq.SVDQuantLinear",
)
"""Classes of PEFT that compute AdaLoRA in linear layers; not all can be imported everywhere."""

ADALORA_EPSILON = 1e-5
"""Constant that AdaLoRA adds to the number of ranks before it divides by it."""


@dataclass
class Branch:
    """The adapter of one layer.

    Attributes:
        name: Name of the layer in the base model.
        layer: The adapted layer.
        module: The module whose input is read.
        activations: Computes the activations from that input.
        rank: The adapter's r in this layer; ``None`` if it has none.
        down: ``W_down`` (d, r) if the activations are the latent; ``None`` if they are the update itself.
        bias: Bias of ``W_down`` (d,), if it has one; the activations then end with a column of ones.
        up: For linear adapters ``W_up`` (r, in), so that ``scaling * down @ up`` is the weight of the update.
        diagonal: AdaLoRA's E (r, 1), which scales the rows of ``up``.
        scaling: Factor ``s`` on the update; 1 if the activations include it.
        seconds: Time spent on computing activations.
    """

    name: str
    layer: BaseTunerLayer
    module: nn.Module
    activations: ComputeActivations
    rank: int | None = None
    down: Tensor | None = None
    bias: Tensor | None = None
    up: Tensor | None = None
    diagonal: Tensor | None = None
    scaling: float = 1.0
    seconds: float = 0.0

    def attach(self, sink: ActivationSink, later: list[Callable[[], None]] | None = None) -> list[RemovableHandle]:
        """Let ``sink`` receive the activations of every forward pass, and return the handles that end it.

        Args:
            sink: Called during the forward pass, before the module computes its output.
            later: If given, calls of ``sink`` are appended to it instead, for when the forward pass is over.
        """

        def receive(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if later is None:
                self._send(sink, args, kwargs)
            else:
                states = generator_states(_device(args, kwargs))
                later.append(lambda: self._send(sink, args, kwargs, states))

        return [self.module.register_forward_pre_hook(receive, with_kwargs=True)]

    def _send(
        self, sink: ActivationSink, args: Any, kwargs: dict[str, Any], generators: tuple[Tensor, ...] | None = None
    ) -> None:
        start = time.perf_counter()
        with isolated(_device(args, kwargs), generators):
            activations = self.activations(args, kwargs)
        self.seconds += time.perf_counter() - start
        if activations is not None:
            sink(activations)

    def read_weights(self, gather: GatherWeight = unpartitioned) -> BranchWeights | None:
        """Return the weights of this moment; ``None`` if the activations are the update itself.

        Args:
            gather: Called with each weight that is read.
        """
        if self.down is None:
            return None
        return read_weights(self.down, self.bias, self.up, self.diagonal, self.scaling, gather)

    def spectra(
        self,
        accumulator: SpectrumAccumulator,
        quantities: Collection[Quantity],
        weights: BranchWeights | None = None,
    ) -> dict[str, Tensor]:
        """Return the singular values (k,) of each of ``quantities`` that the branch has, as it is and centred.

        k is the largest rank that the matrix can have: for a linear adapter at most the width of the layer's input.

        Args:
            accumulator: Has received the branch's activations.
            quantities: Any of ``update``, ``latent`` and ``weight``.
            weights: As ``read_weights`` returned them for these activations; by default they are read now.

        Returns:
            By name of the matrix (``cera.spectral.files.MATRICES``).
        """
        weights = weights or self.read_weights()
        projections: dict[Quantity, Tensor | None] = {}
        if "update" in quantities:
            projections["update"] = None if weights is None else weights.projection
        if "latent" in quantities and weights is not None:
            projections["latent"] = None if self.bias is None else torch.eye(weights.r, weights.r + 1)
        most = None if self.up is None else min(self.up.shape)
        spectra: dict[str, Tensor] = {}
        if accumulator.rows:
            for quantity, projection in projections.items():
                for name, centre in ((quantity, False), (quantity + CENTRED, True)):
                    spectra[name] = accumulator.singular_values(projection, centre=centre)[:most]
        if "weight" in quantities and weights is not None and weights.product is not None:
            spectra["weight"] = weights.product
        return spectra


def find_branches(model: nn.Module, adapter: str = "default", gather: GatherWeight = unpartitioned) -> list[Branch]:
    """Return the branches of ``adapter`` in the order of the model's modules, without those of fused experts.

    Args:
        model: Holds layers of a PEFT method.
        adapter: Name of the adapter.
        gather: Called with each weight that is read in a forward pass.
    """
    return [
        _branch(base_name(name), layer, adapter, gather)
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
        and not isinstance(layer, CeraExperts | ParamWrapper | TrainableTokensLayer)
        and adapter in layer._get_available_adapters()
    ]


def is_off(layer: BaseTunerLayer, adapter: str) -> bool:
    """Return whether a layer's forward pass leaves its adapter out: merged, disabled or not active."""
    return layer.merged or layer.disable_adapters or adapter not in layer.active_adapters


def _branch(name: str, layer: Any, adapter: str, gather: GatherWeight) -> Branch:
    if type(layer) in (CeraLayer, ModuleLayer) and adapter not in layer.branch_magnitude:
        return _cera_branch(name, layer, adapter)
    if f"{type(layer).__module__}.{type(layer).__qualname__}" in ADALORA_LAYERS and adapter in layer.lora_E:
        return _adalora_branch(name, layer, adapter)
    rank = layer.r.get(adapter) if isinstance(getattr(layer, "r", None), dict) else None
    if _is_plain_lora(layer, adapter):
        return _lora_branch(name, layer, adapter, rank)

    def update(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
        return None if is_off(layer, adapter) else exact_update(layer, adapter, args, kwargs, gather)

    return Branch(name, layer, layer, update, rank)


def _is_plain_lora(layer: Any, adapter: str) -> bool:
    """Return whether the update is ``s B A x``: a class whose formula is known, without a variant or a bias."""
    known = type(layer) is lora.Linear or type(layer).__module__ in QUANTIZED_LORA
    if not known or adapter in layer.lora_variant:
        return False
    projections = (layer.lora_A[adapter], layer.lora_B[adapter])
    return all(type(linear) is nn.Linear and linear.bias is None for linear in projections)


def _cera_branch(name: str, layer: BranchLayer, adapter: str) -> Branch:
    activation = layer.branch_activation[adapter]
    up, down = (cast(nn.Linear, part[adapter]) for part in (layer.branch_up, layer.branch_down))

    def latent(args: Any, kwargs: dict[str, Any]) -> Tensor:  # before dropout, so complete in training mode, too
        bias = None if up.bias is None else up.bias.double()
        values = activation(F.linear(args[0].double(), up.weight.double(), bias))
        return values if down.bias is None else torch.cat([values, torch.ones_like(values[..., :1])], dim=-1)

    return Branch(
        name,
        layer,
        up,
        latent,
        layer.r[adapter],
        down.weight,
        down.bias,
        up.weight if isinstance(activation, nn.Identity) and down.bias is None else None,
        scaling=layer.scaling[adapter],
    )


def _lora_branch(name: str, layer: Any, adapter: str, rank: int | None) -> Branch:
    up, down = layer.lora_A[adapter], layer.lora_B[adapter]
    return Branch(
        name,
        layer,
        up,
        lambda args, kwargs: F.linear(args[0].double(), up.weight.double()),  # after dropout, which is on x
        rank,
        down.weight,
        up=up.weight,
        scaling=layer.scaling[adapter],
    )


def _adalora_branch(name: str, layer: Any, adapter: str) -> Branch:
    up, diagonal, down = (getattr(layer, f"lora_{letter}")[adapter] for letter in "AEB")

    def latent(args: Any, kwargs: dict[str, Any]) -> Tensor:
        x = layer.lora_dropout[adapter].forward(args[0])
        return F.linear(x.double(), up.double() * diagonal)

    return Branch(
        name,
        layer,
        layer.lora_dropout[adapter],
        latent,
        int(up.shape[0]),
        down,
        None,
        up,
        diagonal,
        layer.scaling[adapter] / (float(layer.ranknum[adapter]) + ADALORA_EPSILON),
    )


def _device(args: Any, kwargs: dict[str, Any]) -> torch.device:
    return next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
