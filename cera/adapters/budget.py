"""Adapters of equal size: the bottleneck at which one method has as many parameters as another.

bottleneck_for(trainable_parameters(CeraConfig(r=64), model), HoulsbyConfig(), model)
"""

import copy

import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig


def trainable_parameters(config: PeftConfig, model: nn.Module | PretrainedConfig) -> int:
    """Return the number of parameters that ``config`` trains, ``modules_to_save`` among them.

    Args:
        config: A configuration of any PEFT method.
        model: A transformers causal language model or its configuration. Only the latter is used: the adapter is
            put on a model of that form on the meta device, without weights.
    """
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(model.config if isinstance(model, nn.Module) else model)
    adapted = get_peft_model(skeleton, copy.deepcopy(config), low_cpu_mem_usage=True)
    # on the meta device PEFT lets AdaLoRA's ranknum, a constant, look trainable
    return sum(p.numel() for name, p in adapted.named_parameters() if p.requires_grad and ".ranknum." not in name)


def bottleneck_for(budget: int, config: PeftConfig, model: nn.Module | PretrainedConfig) -> int:
    """Return the greatest ``r`` with which ``config`` trains at most ``budget`` parameters of ``model``.

    Each unit of ``r`` costs the same: in + out parameters for each adapted module (one more with biases, whose out
    parameters of ``W_down`` do not depend on ``r``). So two counts give all others.

    Args:
        budget: Number of trainable parameters, such as ``trainable_parameters`` of another adapter.
        config: CeRA at either granularity, Houlsby, Parallel, or another method whose size is linear in ``r``;
            its own ``r`` is not used.
        model: See ``trainable_parameters``.

    Raises:
        ValueError: The budget is too small for ``r = 1``, or the method's size is not linear in ``r``.
    """
    smallest, next_size = (_size_at(r, config, model) for r in (1, 2))
    step = next_size - smallest
    name = type(config).__name__
    if budget < smallest:
        raise ValueError(
            f"{name} trains {smallest:,} parameters of this model at r=1: more than the {budget:,} of the budget."
        )
    r = 1 + (budget - smallest) // step if step > 0 else 1
    if step <= 0 or _size_at(r, config, model) != smallest + (r - 1) * step:
        raise ValueError(f"the number of parameters of {name} is not linear in r: there is no bottleneck for a budget.")
    return r


def _size_at(r: int, config: PeftConfig, model: nn.Module | PretrainedConfig) -> int:
    config = copy.deepcopy(config)
    config.r = r  # type: ignore[attr-defined]
    return trainable_parameters(config, model)
