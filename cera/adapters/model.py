"""The CeRA tuner: finds the target modules of a model and puts a branch beside each."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, AuxiliaryTrainingWrapper
from peft.utils.other import get_pattern_key
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from cera.adapters.config import CeraConfig
from cera.adapters.layer import NOT_MERGEABLE, CeraLayer


class CeraModel(BaseTuner):
    """A model with CeRA adapters in place; made by ``peft.get_peft_model(model, CeraConfig(...))``."""

    prefix = "cera_"
    tuner_layer_cls = CeraLayer
    # For Llama the queries and values, which is the paper's choice (Section 3.1).
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # type: ignore[assignment]

    def _create_and_replace(  # type: ignore[override]  # the config is always this tuner's own
        self,
        peft_config: CeraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        pattern = get_pattern_key(list(peft_config.rank_pattern), current_key)
        r = peft_config.rank_pattern.get(pattern, peft_config.r)
        if isinstance(target, CeraLayer):
            target.update_layer(adapter_name, r, peft_config)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, nn.Linear | Conv1D):
            raise ValueError(
                f"CeraConfig.target_modules matches {current_key!r}, a {type(base).__name__}. CeRA adapts "
                "linear layers only: torch.nn.Linear (quantized or not) and transformers' Conv1D."
            )
        if isinstance(base, NonDynamicallyQuantizableLinear):
            raise ValueError(
                f"CeraConfig.target_modules matches {current_key!r}, the output projection inside a "
                "torch.nn.MultiheadAttention, which reads its weight and never calls it: an adapter would do nothing."
            )
        layer = CeraLayer(target, adapter_name, r, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a second adapter is added frozen until it is activated
        self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand ``adapter_names`` of a mixed batch down to every adapted layer for the time of one forward."""
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        known = {name for layer in self.modules() if isinstance(layer, CeraLayer) for name in layer.cera_up}
        unknown = set(adapter_names) - known - {"__base__"}
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")
        beams = kwargs.get("num_beams") or 1
        per_row = [name for name in adapter_names for _ in range(beams)]  # generate() repeats each row per beam
        encoder = getattr(self.model, "get_encoder", lambda: None)()
        in_encoder = set() if encoder in (None, self.model) else set(encoder.modules())  # which sees no beams
        handles = [
            module.register_forward_pre_hook(
                partial(_add_adapter_names, names=adapter_names if module in in_encoder else per_row),
                with_kwargs=True,
            )
            for module in self.modules()
            if isinstance(module, CeraLayer | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(NOT_MERGEABLE)

    def unmerge_adapter(self) -> None:
        """Raises ``NotImplementedError``: a CeRA adapter cannot have been merged."""
        raise NotImplementedError(NOT_MERGEABLE)


def _add_adapter_names(module: nn.Module, args: Any, kwargs: dict, names: list[str]) -> tuple[Any, dict]:
    return args, {**kwargs, "adapter_names": names}
