"""Full fine-tuning of chosen matrices as a PEFT method: the ceiling of every linear adapter on the same matrices.

No linear adapter of any rank on ``q_proj`` and ``v_proj`` can do better than training these matrices themselves, each
method at its own best learning rate: the "linear ceiling" that the paper names and does not measure. The matrices are
trained as ``W0 + Delta``, with ``Delta`` zero at the start::

    model = get_peft_model(base, cera.FullWeightConfig(target_modules=["q_proj", "v_proj"]))

Gradients and AdamW's steps are those of training ``W0`` in place, but for two things: weight decay pulls to ``W0`` and
not to zero, and in half precision small steps are not lost in the rounding of ``W0``. The base stays frozen, so the
adapter can be switched off, and its file holds ``Delta`` alone.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from cera.adapters.targets import TARGET_MODULES
from cera.adapters.targets_config import TargetsConfig

INIT_STD = 0.02
"""Standard deviation of ``Delta`` without ``init_weights``."""


@dataclass
class FullWeightConfig(TargetsConfig):
    """Settings of full fine-tuning of linear layers: ``(W0 + Delta) x`` with every entry of ``Delta`` trained.

    Args:
        target_modules: Names (matched as suffixes) or one regular expression of the linear layers. ``None`` takes
            PEFT's targets for LoRA in the model's architecture, queries and values in most; ``"all-linear"`` takes all
            but the output head. With norms and embeddings in ``modules_to_save`` the whole model is trained.
        init_weights: ``True`` starts ``Delta`` at zero, so that step 0 is the base model exactly. ``False`` draws it.

    The other settings are those of ``TargetsConfig``.
    """

    method: ClassVar[str] = "FULLWEIGHT"
    prefix: ClassVar[str] = "full_"

    init_weights: bool = field(default=True, metadata={"help": "Start as an exact no-op (Delta = 0)."})

    def _check(self) -> None:
        super()._check()
        self._demand("init_weights", isinstance(self.init_weights, bool), "true or false")


class FullWeightLayer(nn.Module, BaseTunerLayer):
    """A linear layer whose weight is ``W0 + Delta``; ``full_delta`` has ``Delta`` (out, in) of each adapter by name.

    Args:
        base_layer: The linear layer to adapt.
        adapter_name: Name of the first adapter.
        config: Its settings.
    """

    adapter_layer_names = ("full_delta",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: FullWeightConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        in_features, out_features = _get_in_out_features(base_layer)
        self.in_features, self.out_features = cast(int, in_features), cast(int, out_features)
        self.full_delta = nn.ParameterDict()
        self._disable_adapters = False
        self.merged_adapters = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: FullWeightConfig) -> None:
        """Add (or replace) the adapter ``adapter_name``."""
        delta = torch.zeros(self.out_features, self.in_features)
        self.full_delta[adapter_name] = nn.Parameter(delta if config.init_weights else delta.normal_(std=INIT_STD))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add ``Delta`` of the adapters to the base's weight.

        Args:
            safe_merge: Check the merged weight before it replaces the base's.
            adapter_names: Names of the adapters; ``None`` takes the active ones.

        Raises:
            ValueError: The base is quantized, or a merged weight of ``safe_merge`` is NaN or infinite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.full_delta:
                self._add_to_base(name, 1, safe_merge)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract ``Delta`` of the merged adapters from the base's weight."""
        while self.merged_adapters:
            self._add_to_base(self.merged_adapters.pop(), -1)

    def _add_to_base(self, adapter_name: str, sign: int, safe: bool = False) -> None:
        base = self.get_base_layer()
        weight = cast(Tensor, base.weight)
        if not weight.is_floating_point():
            raise ValueError(f"A {type(base).__name__} is quantized: its weight cannot take up a trained difference.")
        delta = cast(Tensor, self.full_delta[adapter_name]).detach()
        delta = delta.T if isinstance(base, Conv1D) else delta  # Conv1D stores (in, out)
        merged = (weight.detach() + sign * delta.to(weight.device)).to(weight.dtype)
        if safe and not merged.isfinite().all():
            raise ValueError(f"The weights of adapter {adapter_name!r} are NaN or infinite; nothing is merged.")
        weight.data = merged

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``(W0 + Delta) x``, with the sum of the ``Delta`` of the active adapters.

        Args:
            x: (..., in_features).

        Returns:
            (..., out_features), in the base layer's dtype.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if name in self.full_delta:
                delta = cast(Tensor, self.full_delta[name])
                inputs = x if torch.is_autocast_enabled(x.device.type) else self._cast_input_dtype(x, delta.dtype)
                result = result + F.linear(inputs, delta).to(result.dtype)
        return result

    def __repr__(self) -> str:
        return "cera." + super().__repr__()


class FullWeightModel(BaseTuner):
    """A model whose chosen matrices are trained; made by ``peft.get_peft_model(model, FullWeightConfig(...))``."""

    prefix = FullWeightConfig.prefix
    tuner_layer_cls = FullWeightLayer
    target_module_mapping = TARGET_MODULES  # type: ignore[assignment]

    def _create_and_replace(  # type: ignore[override]  # the config is always this tuner's own
        self,
        peft_config: FullWeightConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, FullWeightLayer):
            target.update_layer(adapter_name, peft_config)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, nn.Linear | Conv1D):
            raise ValueError(
                f"FullWeightConfig.target_modules matches {current_key!r}, a {type(base).__name__}, and must match "
                "linear layers: name other modules in modules_to_save."
            )
        layer = FullWeightLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a second adapter is added frozen until it is activated
        self._replace_module(parent, target_name, layer, target)
