"""Whether an adapter fits the model that is served, before any of it is copied into a slot."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor
from vllm.lora.layers import BaseLayerWithLoRA, ClassificationHeadWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear

from cera_vllm.adapter_files import AdapterError, AdapterSettings


class Target(NamedTuple):
    """A module that an adapter may name.

    Attributes:
        layer: The layer that holds it, perhaps packed with others.
        out_features: Width of its output; ``None`` if the layer does not say.
        is_slice: Whether it is one of the layer's slices, in the order of the layer's gammas.
    """

    layer: BaseLayerWithLoRA
    out_features: int | None
    is_slice: bool


def targets(manager: LoRAModelManager) -> Iterator[tuple[str, Target]]:
    """Yield the name of each module that an adapter may name, packed ones by the names of their parts."""
    for name, layer in manager.modules.items():
        parts = manager.packed_modules.get(name)
        base = getattr(layer, "base_layer", None)
        if not parts:
            yield name, Target(layer, getattr(base, "output_size", None), True)
            continue
        widths = _slice_widths(base)
        if len(widths) != len(parts):
            widths = [None] * len(parts)
        for part, width in zip(parts, widths, strict=True):
            yield part, Target(layer, width, len(parts) == getattr(layer, "n_slices", None))


def _slice_widths(base: object) -> list[int | None]:
    if isinstance(base, QKVParallelLinear):  # its output_sizes count replicated heads of keys and values
        key_value_heads = base.total_num_kv_heads
        widths = (base.total_num_heads * base.head_size, key_value_heads * base.head_size)
        return [*widths, key_value_heads * base.v_head_size]
    return list(getattr(base, "output_sizes", []))


def check_fit(manager: LoRAModelManager, adapter: LoRAModel, settings: AdapterSettings) -> None:
    """Hold an adapter, as it was read, against the model.

    Raises:
        AdapterError: A module is not in the model or is one beside which this adapter cannot be, a shape differs, or a
            module that the settings target has no tensors.
    """
    known = dict(targets(manager))
    if manager.is_pooling_model:  # where vLLM also finds modules by their names in the bare model
        known |= {name.removeprefix("model."): target for name, target in known.items()}
    for name, weights in adapter.loras.items():
        if "experts" in name.split("."):
            if settings.method == "CERA":
                raise AdapterError(f"{name} is one of a mixture's experts, beside which CeRA cannot be served.")
            continue
        if name not in known:
            raise AdapterError(f"{name} is no linear layer of the model that is served.")
        _check_target(manager, name, known[name], settings)
        _check_shapes(manager, name, known[name], weights.lora_a, weights.lora_b)
    if manager._is_moe or manager.supports_mm or manager.is_pooling_model:
        return  # whose names in the adapter may be others
    missing = [name for name in known if settings.targets_module(name) and name not in adapter.loras]
    if missing:
        raise AdapterError(f"{missing[0]} has no tensors, though target_modules names it ({len(missing)} in all).")


def _check_target(manager: LoRAModelManager, name: str, target: Target, settings: AdapterSettings) -> None:
    layer = target.layer
    if settings.method == "LORA":
        return
    if not isinstance(layer, BaseLinearLayerWithLoRA) or isinstance(layer, ClassificationHeadWithLoRA):
        raise AdapterError(f"{name} is no linear layer within the model: CeRA cannot be served beside it.")
    split_input = isinstance(layer.base_layer, RowParallelLinear) and layer.tp_size > 1
    if split_input and settings.activation != "identity" and not manager.lora_config.fully_sharded_loras:
        raise AdapterError(
            f"{name} is split by its input over {layer.tp_size} devices: a non-linear adapter beside it needs "
            "--fully-sharded-loras."
        )
    if settings.activation == "learned_mix" and not target.is_slice:
        raise AdapterError(f"{name} is packed with others in a way in which learned_mix cannot be served.")


def _check_shapes(manager: LoRAModelManager, name: str, target: Target, up: Tensor | None, down: Tensor | None) -> None:
    if up is None or down is None:
        raise AdapterError(f"{name} has only one of its two tensors.")
    if up.ndim != 2 or down.ndim != 2 or up.shape[0] != down.shape[1]:
        raise AdapterError(f"{name} has tensors of shapes {tuple(up.shape)} and {tuple(down.shape)}.")
    limit = manager.lora_config.max_lora_rank
    if up.shape[0] > limit:
        raise AdapterError(f"{name} has rank {up.shape[0]}, more than max_lora_rank={limit}.")
    if not isinstance(target.layer, BaseLinearLayerWithLoRA):
        return
    found, expected = (up.shape[1], down.shape[0]), (target.layer.base_layer.input_size, target.out_features)
    if found[0] != expected[0] or expected[1] not in (None, found[1]):
        raise AdapterError(f"{name} maps {expected[0]} to {expected[1]}, the adapter {found[0]} to {found[1]}.")
