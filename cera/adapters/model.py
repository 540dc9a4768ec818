"""The tuners: they find the target modules of a model and put a branch beside each."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.integrations import init_empty_weights
from peft.utils.other import get_pattern_key
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from cera.adapters.config import BranchConfig, CeraConfig
from cera.adapters.experts import CeraExperts, check_experts
from cera.adapters.layer import NOT_MERGEABLE, BranchLayer, CeraLayer
from cera.adapters.module_layer import ModuleLayer
from cera.adapters.placement import default_targets, hidden_size
from cera.adapters.targets import TARGET_MODULES


class CeraModel(BaseTuner):
    """A model with CeRA adapters in place; made by ``peft.get_peft_model(model, CeraConfig(...))``.

    Weight-level and module-level adapters can be on one model together.
    """

    prefix = "cera_"
    tuner_layer_cls = (BranchLayer, CeraExperts)  # type: ignore[assignment]  # only ever the second of isinstance
    target_module_mapping = TARGET_MODULES  # type: ignore[assignment]

    def _prepare_adapter_config(self, peft_config: BranchConfig, model_config: dict) -> BranchConfig:  # type: ignore[override]
        placement = peft_config.default_placement
        if peft_config.target_modules is not None or placement is None:
            return super()._prepare_adapter_config(peft_config, model_config)  # type: ignore[return-value]
        targets = default_targets(model_config.get("model_type", ""), placement)
        if isinstance(targets, str) and peft_config.layers_to_transform is not None:
            name = type(peft_config).__name__
            raise ValueError(f"{name}.layers_to_transform needs target_modules as a list for this model.")
        peft_config.target_modules = targets  # type: ignore[assignment]  # PEFT's own convention
        return peft_config

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT's, which does not look inside of a wrapped module: weight-level targets are found there too."""
        weight_level = cast(BranchConfig, self.peft_config[adapter_name]).default_placement is None
        with _without_module_layers(model) if weight_level else nullcontext():
            super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _create_and_replace(  # type: ignore[override]  # the config is always this tuner's own
        self,
        peft_config: BranchConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        r = _rank(peft_config, current_key)
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        weight_level = peft_config.default_placement is None
        (_check_linear if weight_level else _check_module)(base, current_key, type(peft_config).__name__)
        if isinstance(target, BranchLayer):
            target.update_layer(adapter_name, r, peft_config)
            return
        layer: BranchLayer
        if weight_level:
            layer = CeraLayer(target, adapter_name, r, peft_config)
        else:
            layer = ModuleLayer(target, adapter_name, r, peft_config, hidden_size(base, self.model))
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a second adapter is added frozen until it is activated
        self._replace_module(parent, target_name, layer, target)

    def _inject_parameters(  # type: ignore[override]
        self, peft_config: CeraConfig, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        """Adapt the experts that ``target_parameters`` names; returns the full names.

        PEFT's own wraps a module once for each of its parameters, which leaves no place between them. Names are
        matched as those of modules are: ``exclude_modules`` and ``layers_to_transform`` apply.
        """
        by_parameter = copy.copy(peft_config)
        by_parameter.target_modules = peft_config.target_parameters
        names = [name.replace(".base_layer", "") for name, _ in model.named_parameters() if self.prefix not in name]
        targets = [name for name in names if self._check_target_module_exists(by_parameter, name) is True]
        for name in targets:
            module_name, _, parameter = name.rpartition(".")
            target = model.get_submodule(module_name)
            check_experts(target.get_base_layer() if isinstance(target, BaseTunerLayer) else target, name)
            with init_empty_weights() if low_cpu_mem_usage else nullcontext():
                layer = target if isinstance(target, CeraExperts) else CeraExperts(target, adapter_name)
                layer.update_layer(adapter_name, parameter, _rank(peft_config, name), peft_config)
            if layer is not target:
                if adapter_name not in self.active_adapters:
                    layer.requires_grad_(False)
                parent, _, child = module_name.rpartition(".")
                self._replace_module(model.get_submodule(parent), child, layer, target)
        return targets

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand ``adapter_names`` of a mixed batch down to every adapted layer for the time of one forward."""
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        if any(isinstance(layer, CeraExperts) for layer in self.modules()):
            raise ValueError("Cannot pass `adapter_names` to a model with CeRA on its experts, where rows are mixed.")
        known = {name for layer in self.modules() if isinstance(layer, BranchLayer) for name in layer.cera_up}
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
            if isinstance(module, BranchLayer | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, ModuleLayer | CeraExperts):  # unloading: PEFT would hand on a weight, which these lack
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def unload(self) -> nn.Module:
        """The base model, without any adapter."""
        super().unload()  # takes the outer layers off,
        return super().unload()  # and then those that were inside of wrapped modules

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(NOT_MERGEABLE)

    def unmerge_adapter(self) -> None:
        """Raises ``NotImplementedError``: these adapters cannot have been merged."""
        raise NotImplementedError(NOT_MERGEABLE)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """The name of a weight in a file: the same whether or not its layer is inside of a wrapped module."""
        return super()._remove_adapter_name_from_key(key, adapter_name).replace(".base_layer.", ".")


class HoulsbyModel(CeraModel):
    """A model with Houlsby adapters in place; made by ``peft.get_peft_model(model, HoulsbyConfig(...))``."""


class ParallelModel(CeraModel):
    """A model with parallel adapters in place; made by ``peft.get_peft_model(model, ParallelConfig(...))``."""


def _rank(config: BranchConfig, key: str) -> int:
    return config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), key), config.r)


def _check_linear(base: nn.Module, key: str, config: str) -> None:
    if not isinstance(base, nn.Linear | Conv1D):
        raise ValueError(
            f"{config}.target_modules matches {key!r}, a {type(base).__name__}. CeRA adapts linear layers only: "
            "torch.nn.Linear (quantized or not) and transformers' Conv1D; granularity='module' adapts whole modules, "
            "target_parameters=['experts.gate_up_proj', 'experts.down_proj'] the fused experts of transformers."
        )
    if isinstance(base, NonDynamicallyQuantizableLinear):
        raise ValueError(
            f"{config}.target_modules matches {key!r}, the output projection inside a "
            "torch.nn.MultiheadAttention, which reads its weight and never calls it: an adapter would do nothing."
        )


def _check_module(base: nn.Module, key: str, config: str) -> None:
    if not any(True for _ in base.children()) or isinstance(base, nn.ModuleList | nn.ModuleDict):
        raise ValueError(
            f"{config}.target_modules matches {key!r}, a {type(base).__name__}. A module-level adapter is put around "
            "a whole module that maps hidden states to hidden states, such as attention or feed-forward; "
            "target_modules=null takes those of the model's architecture."
        )


@contextmanager
def _without_module_layers(model: nn.Module) -> Iterator[None]:
    """Put the wrapped modules back in their places for a while."""
    wrapped = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, ModuleLayer)
    ]
    for parent, name, layer in wrapped:
        setattr(parent, name, layer.base_layer)
    try:
        yield
    finally:
        for parent, name, layer in wrapped:
            setattr(parent, name, layer)


def _add_adapter_names(module: nn.Module, args: Any, kwargs: dict, names: list[str]) -> tuple[Any, dict]:
    return args, {**kwargs, "adapter_names": names}
