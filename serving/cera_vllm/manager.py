"""vLLM's manager of a worker's adapters, which also tells the wrappers what is between their products."""

from typing import Any, cast

from vllm.lora.layers import ClassificationHeadWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.model_manager import LRUCacheLoRAModelManager

from cera_vllm import seeds
from cera_vllm.activations import CODES
from cera_vllm.loading import CeraModel
from cera_vllm.punica import LayerWrapper, MaskedWrapper, SegmentedWrapper


class CeraModelManager(LRUCacheLoRAModelManager):
    """Manages CeRA and LoRA adapters alike; a LoRA is a CeRA with the identity."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        seeds.install()  # here, in a worker whose model runner is imported anyway
        super().__init__(*args, **kwargs)

    def _create_lora_modules(self) -> None:
        super()._create_lora_modules()
        for layer in self.modules.values():
            if isinstance(layer, BaseLinearLayerWithLoRA) and not isinstance(layer, ClassificationHeadWithLoRA):
                layer.set_mapping(LayerWrapper(layer.punica_wrapper, layer.n_slices, self.lora_slots))

    def activate_adapter(self, lora_id: int) -> bool:
        """Copy an adapter into a slot, if it is in none; one that fails is forgotten, and not found half there."""
        try:
            copied = super().activate_adapter(lora_id)
        except Exception:
            self.remove_adapter(lora_id)
            raise
        if copied:
            self._set_activation(lora_id)
            self._last_mapping = None  # the same adapters in the same slots may have other activations now
        return copied

    def _set_activation(self, lora_id: int) -> None:
        adapter = self._registered_adapters.cache[lora_id]
        slot = self.lora_index_to_id.index(lora_id)
        activation, gammas = (
            (adapter.activation, adapter.gammas) if isinstance(adapter, CeraModel) else ("identity", {})
        )
        for wrapper in self.punica_wrapper_mapping.values():
            cast(SegmentedWrapper | MaskedWrapper, wrapper).set_slot(slot, CODES[activation])
        for name, layer in self.modules.items():
            own = layer.punica_wrapper
            if isinstance(own, LayerWrapper) and isinstance(own.wrapper, SegmentedWrapper):
                own.set_slot(slot, layer.lora_a_stacked, layer.lora_b_stacked)
            for index, part in enumerate(self.packed_modules.get(name) or [name]):
                if part in gammas:
                    cast(LayerWrapper, layer.punica_wrapper).gammas[index, slot] = gammas[part]
