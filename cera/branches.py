"""Where in a PEFT model the activations lie that ``cera.spectral`` measures.

For CeRA and LoRA the latent is the input of the down-projection, and the update follows from it and the weight. DoRA's
update is defined as its output minus the base's, ``(m / ||W0 + s B A|| - 1) W0 x + m / ||W0 + s B A|| s B A x``; it
has no latent of width r, nor have methods that are not known here: theirs is the layer's output minus that of its
base layer, which in bf16 carries the rounding of the sum.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass
class Branch:
    """One adapted layer.

    Attributes:
        name: Of the layer in the model, without PEFT's wrapping.
        listen: Registers a function that gets the activations (..., k) at each forward; returns the hooks' handles.
        down: ``W_down`` (d, r) if the activations are the latent; ``None`` if they are the update itself.
        scaling: The factor on the update, 1 if it is in the activations already.
    """

    name: str
    listen: Callable[[Callable[[Tensor], None]], list[RemovableHandle]]
    down: Tensor | None = None
    scaling: float = 1.0


def find_branches(model: nn.Module, adapter: str = "default") -> list[Branch]:
    """The branches of ``adapter`` in ``model``, in the model's order."""
    return [
        _branch(name.removeprefix("base_model.model."), layer, adapter)
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer) and adapter in layer._get_available_adapters()
    ]


def _branch(name: str, layer: Any, adapter: str) -> Branch:
    if adapter in getattr(layer, "cera_down", {}):
        return _latent(name, layer.cera_down[adapter], layer.scaling[adapter])
    if adapter in getattr(layer, "lora_magnitude_vector", {}):
        return Branch(name, lambda receive: [_on_output(layer.lora_magnitude_vector[adapter], receive)])
    down = getattr(layer, "lora_B", {})
    if adapter in down and isinstance(down[adapter], nn.Linear):
        return _latent(name, down[adapter], layer.scaling[adapter])
    return Branch(name, lambda receive: _difference(layer, receive))


def _latent(name: str, down: nn.Linear, scaling: float) -> Branch:
    def listen(receive: Callable[[Tensor], None]) -> list[RemovableHandle]:
        return [down.register_forward_pre_hook(lambda _, args: receive(args[0]))]

    return Branch(name, listen, down.weight, scaling)


def _on_output(module: nn.Module, receive: Callable[[Tensor], None]) -> RemovableHandle:
    return module.register_forward_hook(lambda _, args, output: receive(output))


def _difference(layer: Any, receive: Callable[[Tensor], None]) -> list[RemovableHandle]:
    held: list[Tensor] = []
    return [
        # a copy: some methods add their update to the base's output in place
        _on_output(layer.base_layer, lambda output: held.append(output.detach().clone())),
        _on_output(layer, lambda output: receive(output.detach().float() - held.pop().float())),
    ]
