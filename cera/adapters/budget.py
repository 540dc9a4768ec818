"""Adapters of equal size: the bottleneck at which one method has as many parameters as another.

bottleneck_for(trainable_parameters(CeraConfig(r=64), model), HoulsbyConfig(), model)
"""

import bisect
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

    A unit of ``r`` costs in + out parameters for each adapted module (one more with biases, whose out parameters of
    ``W_down`` do not depend on ``r``), and a recurrent latent ``2 r^2``. So three counts give all others.

    Args:
        budget: Number of trainable parameters, such as ``trainable_parameters`` of another adapter.
        config: CeRA at either granularity, Houlsby, Parallel, or another method whose size is quadratic or
            linear in ``r``; its own ``r`` is not used.
        model: See ``trainable_parameters``.

    Raises:
        ValueError: The budget is too small for ``r = 1``, or the method's size is no quadratic function of ``r``.
    """
    smallest, second, third = (_size_at(r, config, model) for r in (1, 2, 3))
    step, bend = second - smallest, third - 2 * second + smallest

    def size(r: int) -> int:
        return smallest + (r - 1) * step + (r - 1) * (r - 2) // 2 * bend

    name = type(config).__name__
    if budget < smallest:
        raise ValueError(
            f"{name} trains {smallest:,} parameters of this model at r=1: more than the {budget:,} of the budget."
        )
    grows = step > 0 and bend >= 0
    r = bisect.bisect_right(range(1, 2 + (budget - smallest) // step), budget, key=size) if grows else 1
    if not grows or _size_at(r, config, model) != size(r):
        raise ValueError(
            f"the number of parameters of {name} is no quadratic function of r: there is no bottleneck for a budget."
        )
    return r


def _size_at(r: int, config: PeftConfig, model: nn.Module | PretrainedConfig) -> int:
    config = copy.deepcopy(config)
    config.r = r  # type: ignore[attr-defined]
    return trainable_parameters(config, model)
