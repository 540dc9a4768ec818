"""The base of the tuners: it finds the target modules of a model and puts a branch beside each.

A tuner of your own that changes the branch, and not where it lies, derives from ``BranchModel``; see
``cera.register_adapter``.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from cera.adapters.branch_config import BranchConfig
from cera.adapters.experts import CeraExperts
from cera.adapters.layer import NOT_MERGEABLE, BranchLayer, CeraLayer
from cera.adapters.mixed_batch import BatchNames
from cera.adapters.module_layer import ModuleLayer
from cera.adapters.targets import TARGET_MODULES, default_targets, hidden_size


class BranchModel(BaseTuner):
    """A model with branches beside its linear layers or around whole modules.

    Weight-level and module-level adapters of one method can be on a model together. Subclasses set ``prefix``, which
    begins the names of the adapter's weights.
    """

    prefix: str
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
        """Put the adapter in; see PEFT's ``BaseTuner.inject_adapter``.

        PEFT does not look inside of a wrapped module. Here weight-level targets are found there, too.
        """
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
        r = rank_of_module(peft_config, current_key)
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

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Pass the ``adapter_names`` of a mixed batch to every adapted layer during one forward."""
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        if any(isinstance(layer, CeraExperts) for layer in self.modules()):
            raise ValueError("Cannot pass `adapter_names` to a model with CeRA on its experts, where rows are mixed.")
        known = {name for layer in self.modules() if isinstance(layer, BranchLayer) for name in layer.branch_up}
        unknown = set(adapter_names) - known - {"__base__"}
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")
        beams = kwargs.get("num_beams") or 1
        once = BatchNames(adapter_names)
        per_row = BatchNames(name for name in once for _ in range(beams))  # generate() repeats each row per beam
        encoder = getattr(self.model, "get_encoder", lambda: None)()
        in_encoder = set() if encoder in (None, self.model) else set(encoder.modules())  # which sees no beams
        handles = [
            module.register_forward_pre_hook(
                partial(_add_adapter_names, names=once if module in in_encoder else per_row),
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
        # unloading: PEFT would hand on a weight, which these lack, or which is the adapter's and not the base's
        if isinstance(child, ModuleLayer | CeraExperts | AuxiliaryTrainingWrapper):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def unload(self) -> nn.Module:
        """Return the base model, without any adapter."""
        super().unload()  # removes the outer layers,
        return super().unload()  # and then those that were inside of wrapped modules

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(NOT_MERGEABLE)

    def unmerge_adapter(self) -> None:
        """Raise ``NotImplementedError``: these adapters cannot have been merged."""
        raise NotImplementedError(NOT_MERGEABLE)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Return the name of a weight in a file: the same whether or not its layer is inside of a wrapped module."""
        name = super()._remove_adapter_name_from_key(key, adapter_name)
        return name.replace(".base_layer.", ".") if cls.prefix in name else name  # others' are names in the base

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the state dict with the model's names; files of earlier versions are read, too."""
        current = {with_current_prefix(key, cls.prefix): tensor for key, tensor in state_dict.items()}
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, current)


def with_current_prefix(key: str, prefix: str) -> str:
    """Return a weight's name with its method's prefix: at first Houlsby and parallel adapters had CeRA's."""
    return key.replace(".cera_", f".{prefix}")


def rank_of_module(config: BranchConfig, key: str) -> int:
    """Return the latent width in the module or parameter named ``key``: ``rank_pattern``'s, else ``r``."""
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
    """Put the wrapped modules back in their places during the block."""
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
