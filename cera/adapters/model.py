"""The tuners of this package, which ``peft.get_peft_model`` makes from their configurations."""

import copy
from contextlib import nullcontext

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import init_empty_weights
from torch import nn

from cera.adapters.branch_model import BranchModel, rank_of_module
from cera.adapters.config import CeraConfig, HoulsbyConfig, ParallelConfig
from cera.adapters.experts import CeraExperts, check_experts


class CeraModel(BranchModel):
    """A model with CeRA adapters in place; made by ``peft.get_peft_model(model, CeraConfig(...))``."""

    prefix = CeraConfig.prefix

    def _inject_parameters(  # type: ignore[override]
        self, peft_config: CeraConfig, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        """Adapt the experts that ``target_parameters`` names, and return their full names.

        PEFT's own implementation wraps a module once for each of its parameters, which leaves no place between them.
        Names are matched as those of modules are: ``exclude_modules`` and ``layers_to_transform`` apply.
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
                layer.update_layer(adapter_name, parameter, rank_of_module(peft_config, name), peft_config)
            if layer is not target:
                if adapter_name not in self.active_adapters:
                    layer.requires_grad_(False)
                parent, _, child = module_name.rpartition(".")
                self._replace_module(model.get_submodule(parent), child, layer, target)
        return targets


class HoulsbyModel(BranchModel):
    """A model with Houlsby adapters in place; made by ``peft.get_peft_model(model, HoulsbyConfig(...))``."""

    prefix = HoulsbyConfig.prefix


class ParallelModel(BranchModel):
    """A model with parallel adapters in place; made by ``peft.get_peft_model(model, ParallelConfig(...))``."""

    prefix = ParallelConfig.prefix
