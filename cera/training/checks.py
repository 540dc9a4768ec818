"""Checks that an adapter fits its base model and the run, made before any weights are loaded.

Example:
    >>> count_trained("meta-llama/Llama-3.2-1B", CeraConfig(r=8))  # the number of parameters, or a ValueError
"""

import re
from collections.abc import Callable
from typing import Any

from peft import AdaLoraConfig, PeftConfig, PeftType, get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from transformers.pytorch_utils import Conv1D

from cera.foreign_files import one_line
from cera.models.backbone import build_skeleton

UNSUPPORTED = {PeftType.XLORA, PeftType.POLY, PeftType.CPT}
"""PEFT methods that the training step does not support, besides those of prompt learning."""

Matches = Callable[[str, str], bool]
"""Takes a key from an adapter's configuration and the full name of a module or parameter."""


def count_trained(base: str, adapter: PeftConfig) -> int:
    """Return the number of parameters that ``adapter`` trains, counted on a skeleton of ``base`` without weights.

    Prompt-learning methods are refused: their virtual tokens do not fit packed documents.

    Args:
        base: Name of the base model, as ``cera.models.backbone`` reads it.
        adapter: PEFT configuration with the task type set. PEFT may write to it.

    Raises:
        ValueError: The adapter does not fit the base; the message names the field and what would fit.
    """
    if adapter.is_prompt_learning or adapter.peft_type in UNSUPPORTED:
        raise ValueError(f"model.adapter: {type(adapter).__name__} is not supported by this training step yet.")
    skeleton = build_skeleton(base)
    check_names(base, adapter, skeleton)
    check_tokens(base, adapter, skeleton)
    target_modules = getattr(adapter, "target_modules", None)
    try:
        model = get_peft_model(skeleton, adapter, low_cpu_mem_usage=True)
    except NoMatchingPeftModuleError as error:
        raise ValueError(
            f"model.adapter.target_modules={target_modules} matches nothing in {base}. "
            f"Its {_available_names('target_modules', skeleton)}. ({error})"
        ) from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError) as error:  # by method and setting
        raise ValueError(
            f"model.adapter: {type(adapter).__name__} cannot be applied to {base}: {one_line(error)}."
        ) from error
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def check_names(base: str, adapter: PeftConfig, skeleton: nn.Module) -> None:
    """Raise ``ValueError`` if the adapter lists a module or parameter that the base does not have.

    PEFT ignores such a name as long as another one in the list matches.
    """
    modules = [name for name, _ in skeleton.named_modules()]
    parameters = [name for name, _ in skeleton.named_parameters()]
    rules: dict[str, tuple[Matches, list[str]]] = {
        "target_modules": (_is_suffix, modules),
        "target_parameters": (_is_suffix, parameters),
        "modules_to_save": (_is_suffix, modules),
        "rank_pattern": (_is_pattern, modules + parameters),
    }
    for field, (matches, names) in rules.items():
        keys = getattr(adapter, field, None)
        if not isinstance(keys, list | set | dict):
            continue
        for key in sorted(keys):
            if not any(matches(key, name) for name in names):
                raise ValueError(
                    f"model.adapter.{field}: {key!r} matches nothing in {base}. "
                    f"Its {_available_names(field, skeleton)}."
                )


def check_tokens(base: str, adapter: PeftConfig, skeleton: Any) -> None:
    """Raise ``ValueError`` if the adapter trains the embedding of a token that the base does not have."""
    tokens = getattr(adapter, "trainable_token_indices", None)
    if not tokens:
        return
    size = skeleton.get_input_embeddings().num_embeddings
    highest = max(max(ids) for ids in tokens.values()) if isinstance(tokens, dict) else max(tokens)
    if highest >= size:
        raise ValueError(
            f"model.adapter.trainable_token_indices: {base} has {size} embeddings, so tokens are 0 to {size - 1}, got "
            f"{highest}. A model whose vocabulary was extended must be saved first, and be named as model.base."
        )


def check_adalora_steps(adapter: PeftConfig, steps: int) -> None:
    """Raise ``ValueError`` if AdaLoRA's rank schedule has another number of steps than the run."""
    if isinstance(adapter, AdaLoraConfig) and adapter.total_step != steps:
        raise ValueError(
            f"model.adapter.total_step={adapter.total_step} must be the number of steps of the run, {steps}: "
            "a configuration file can say ${trainer.max_steps}."
        )


def _is_suffix(key: str, name: str) -> bool:
    return f".{name}".endswith(f".{key}")


def _is_pattern(key: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({key})$", name) is not None


def _available_names(field: str, skeleton: nn.Module) -> str:
    """Describe what ``field`` can name, by the last parts of the names: linear modules, or fused experts' weights."""
    if field == "target_parameters":
        kind = "fused experts' weights"
        names = {".".join(name.split(".")[-2:]) for name, p in skeleton.named_parameters() if p.ndim == 3}
    else:
        kind = "linear modules"
        names = {n.rpartition(".")[2] for n, m in skeleton.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    return f"{kind} are {', '.join(sorted(names)) or 'none'}"
