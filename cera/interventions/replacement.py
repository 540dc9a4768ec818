"""Puts a part of an activation in its place, in the layers of a model that carry an adapter's branches.

Only the activation module of a layer is exchanged, so that all else is the model's own forward pass.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from peft import PeftConfig
from torch import Tensor, nn

from cera.adapters import BranchConfig, BranchLayer, CeraExperts
from cera.interventions.affine import LEVELS, AffineMap, LayerFit, Level
from cera.spectral.layer_names import base_name, layer_labels

Part = Literal["whole", "none", "gain", "offset", "affine", "curvature"]
"""What stands in an activation's place: all of it, nothing, or a part of it."""
PARTS: tuple[Part, ...] = get_args(Part)


class InterventionError(ValueError):
    """A model or an argument does not allow the intervention; the message says why and what would."""


def can_intervene(config: PeftConfig) -> bool:
    """Return whether an adapter has branches with an activation, none of them in experts."""
    return isinstance(config, BranchConfig) and not getattr(config, "target_parameters", None)


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
            part = self.activation(z).to(wide.dtype) - self.fitted(wide)
        return part.to(z.dtype)


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
    branches = find_branches(model, adapter)
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


def find_branches(model: nn.Module, adapter: str) -> dict[str, BranchLayer]:
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


def in_layers(branches: dict[str, BranchLayer], layers: Iterable[int] | None) -> dict[str, BranchLayer]:
    """Return the branches in the layers of these numbers."""
    if layers is None:
        return branches
    numbers = {name: number for name, (number, _) in layer_labels(branches).items()}
    wanted = set(layers)
    if unknown := wanted - set(numbers.values()):
        known = ", ".join(map(str, sorted(set(numbers.values()))))
        raise InterventionError(f"layers must be among {known}, got {', '.join(map(str, sorted(unknown)))}.")
    return {name: branch for name, branch in branches.items() if numbers[name] in wanted}
