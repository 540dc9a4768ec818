"""Recomputes what one adapter adds to its layer's output, in high precision and from the input that the layer had.

The difference of two outputs in bf16 carries their rounding, 0.4% of the base's output in every direction, which is
more than most updates are. So the layer is copied with weights of the wanted precision, and the copy runs on the same
input. The copy has no hooks, and this adapter alone is active in it.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from cera.adapters import CeraLayer
from cera.spectral.accumulator import ROUNDING

GatherWeight = Callable[[Tensor], Tensor]
"""Returns a weight in full that may be partitioned over ranks (ZeRO-3)."""

CASTS = (Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double, Tensor.type, Tensor.type_as)
QUANTIZED = ("Params4bit", "Int8Params")


def unpartitioned(weight: Tensor) -> Tensor:
    """Return ``weight``, which is not partitioned, as it is."""
    return weight


@contextmanager
def isolated(device: torch.device, generators: tuple[Tensor, ...] | None = None) -> Iterator[None]:
    """Compute without gradients and autocast, fp32 products in fp32, and leave the random generators as they were.

    Dropout thus draws the masks that the layer itself draws afterwards (on a GPU another mask, if the data type is
    another).

    Args:
        device: Of the computation.
        generators: States of the random generators to begin with, as ``generator_states`` returned them.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
    try:
        with forked, torch.no_grad(), torch.autocast(device.type, enabled=False):
            if generators is not None:
                torch.set_rng_state(generators[0])
                if device.type == "cuda":
                    torch.cuda.set_rng_state(generators[1], device)
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def generator_states(device: torch.device) -> tuple[Tensor, ...]:
    """Return the states of the CPU's random generator and of the device's own, if it is a GPU."""
    cpu = torch.get_rng_state()
    return (cpu, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (cpu,)


def exact_update(
    layer: Any, adapter: str, args: Any, kwargs: dict[str, Any], gather: GatherWeight = unpartitioned
) -> Tensor | None:
    """Return what ``adapter`` adds to the output of its base layer; to be called within ``isolated``.

    Where the layer itself computes that (DoRA, the hybrid of CeRA with DoRA), it does so in fp32: its factor m / n - 1
    is exact to fp32 only, as the weights m are, and exactly 0 before training. Elsewhere it is the layer's output minus
    its base layer's, in fp64.

    Args:
        layer: A layer of any PEFT method; it stays as it is.
        adapter: Name of one of its adapters, which is neither merged nor disabled.
        args: Positional arguments of the layer's forward, and ``kwargs`` its keyword arguments.
        gather: Called with each weight that is read.

    Returns:
        (..., d) fp32 or fp64; ``None`` if the layer's output is not a tensor with features in its last dimension.
    """
    direct = adapter in getattr(layer, "branch_magnitude", {}) or _is_dora(layer, adapter)
    dtype = torch.float32 if direct else torch.float64
    clone: Any = plain_copy(layer, dtype, gather)
    clone._active_adapter = [adapter]
    with _Precision(dtype):
        if not direct:
            return _difference(clone, args, kwargs)
        if isinstance(clone, CeraLayer):
            return clone.delta(args[0].to(dtype), clone.base_layer(*args, **kwargs), adapter)
        outputs: list[Tensor] = []
        clone.lora_magnitude_vector[adapter].register_forward_hook(lambda _, args, output: outputs.append(output))
        clone(*args, **kwargs)
        return outputs[0]


def plain_copy(module: nn.Module, dtype: torch.dtype, gather: GatherWeight = unpartitioned) -> nn.Module:
    """Return a copy of ``module`` with its weights in ``dtype``, in full and without hooks.

    Quantized linear layers become plain ones with the dequantized weight.
    """
    return _copy(module, lambda weight: gather(weight).detach().to(weight.device, dtype), {})


def _copy(module: nn.Module, convert: Callable[[Tensor], Tensor], done: dict[int, nn.Module]) -> nn.Module:
    if id(module) in done:
        return done[id(module)]
    if _is_quantized(module):
        done[id(module)] = _dequantized(module, convert)
        return done[id(module)]
    clone = done[id(module)] = copy.copy(module)
    for name in [name for name in vars(clone) if name.endswith(("_hooks", "_hooks_with_kwargs"))]:
        vars(clone)[name] = OrderedDict()
    vars(clone).pop("forward", None)  # an override bound to the original
    clone._parameters = {name: _converted(weight, convert) for name, weight in module._parameters.items()}
    clone._buffers = {
        name: convert(value) if value is not None and value.is_floating_point() else value
        for name, value in module._buffers.items()
    }
    clone._modules = {
        name: None if child is None else _copy(child, convert, done) for name, child in module._modules.items()
    }
    return clone


def _converted(weight: nn.Parameter | None, convert: Callable[[Tensor], Tensor]) -> nn.Parameter | None:
    if weight is None or not weight.is_floating_point():
        return weight
    return nn.Parameter(convert(weight), requires_grad=False)


def _is_quantized(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None) if isinstance(module, nn.Linear) or hasattr(module, "W_q") else None
    kind = type(weight)
    return hasattr(module, "W_q") or kind.__name__ in QUANTIZED or kind.__module__.startswith("torchao.")


def _dequantized(module: Any, convert: Callable[[Tensor], Tensor]) -> nn.Linear:
    weight = convert(dequantize_module_weight(module))
    bias = getattr(module, "bias", None)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear._parameters = {"weight": nn.Parameter(weight, requires_grad=False), "bias": _converted(bias, convert)}
    return linear


def _is_dora(layer: Any, adapter: str) -> bool:
    magnitudes = getattr(layer, "lora_magnitude_vector", {})
    return adapter in magnitudes and type(magnitudes[adapter]) is DoraLinearLayer


def _difference(clone: Any, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    base, output = clone.base_layer(*args, **kwargs), None
    if isinstance(base, Tensor):
        base = base.clone()  # some methods add their update to the base's output in place
        output = clone(*args, **kwargs)
    if not isinstance(output, Tensor) or output.shape != base.shape:
        return None
    update = output - base
    if torch.linalg.vector_norm(update) <= ROUNDING * torch.linalg.vector_norm(base):
        update = torch.zeros_like(update)
    return update.movedim(1, -1) if isinstance(clone.get_base_layer(), nn.modules.conv._ConvNd) else update


class _Precision(TorchFunctionMode):
    """Computes in ``dtype`` throughout: casts to other floating types cast to it, and operands are brought to it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ == "__get__":  # a property
            return func(*args, **kwargs)
        if func in CASTS:
            result = func(*args, **kwargs)
            source = args[0] if args[0].is_floating_point() else result
            return source.to(result.device, self.dtype) if result.is_floating_point() else result
        if func is Tensor.__setitem__ or (func.__name__.endswith("_") and not func.__name__.endswith("__")):
            return func(*args, **kwargs)  # in place
        args, kwargs = tree_map(self._raise, (args, kwargs))
        return tree_map(self._raise, func(*args, **kwargs))

    def _raise(self, value: Any) -> Any:
        lower = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != self.dtype
        return value.to(self.dtype) if lower else value
