"""Which modules of an architecture are adapted where a configuration names no ``target_modules``.

Weight-level CeRA takes the query and value projections (paper Section 3.1). Where a model projects queries, keys and
values by one matrix (GPT-2's ``c_attn``, Phi-3's ``qkv_proj``, GPT-NeoX's ``query_key_value``) the default is this
matrix: the branch has one ``W_up``, and a ``W_down`` whose output is added to queries, keys and values. Module-level
adapters take whole attention or feed-forward modules (Tables 3 and 4).
"""

from collections.abc import Sequence
from typing import Any, Literal

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

Placement = Literal["attention", "ffn", "both"]
"""Which modules of a decoder layer a module-level adapter takes."""

QUERIES_AND_VALUES = ["q_proj", "v_proj"]

TARGET_MODULES: dict[str, Sequence[str]] = {
    **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    "phi": QUERIES_AND_VALUES,  # without the MLP, which PEFT adds
    "phi3": ["qkv_proj"],
    "olmo2": QUERIES_AND_VALUES,
    "olmoe": QUERIES_AND_VALUES,
    "qwen2_moe": QUERIES_AND_VALUES,
    "qwen3_moe": QUERIES_AND_VALUES,
    "gpt_oss": QUERIES_AND_VALUES,
    "smollm3": QUERIES_AND_VALUES,
}
"""``model_type`` -> module names or a regular expression: PEFT's LoRA target modules, corrected for Phi and extended
with newer architectures."""

MODULES: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "mixtral", "smollm3", "olmo2", "phi", "phi3"),
            *("gemma", "gemma2", "gemma3", "gemma3_text"),
            *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
        ),
        ("self_attn", "mlp"),
    ),
    "gpt2": ("attn", "mlp"),
    "gpt_neox": ("attention", "mlp"),
}
"""``model_type`` -> names of the attention module and of the feed-forward module in a decoder layer."""

WITH_VISION = {"gemma3"}
"""Model types whose language model lies in ``language_model``, beside other towers with modules of the same names."""


def default_targets(model_type: str, placement: Placement) -> set[str] | str:
    """Return the ``target_modules`` of a module-level adapter whose configuration names none.

    Args:
        model_type: transformers' name of the architecture.
        placement: Which modules to adapt.

    Raises:
        ValueError: The modules of the architecture are unknown.
    """
    if model_type not in MODULES:
        raise ValueError(
            f"The attention and feed-forward modules of model type {model_type!r} are not known: name them in "
            f"target_modules. Known are {', '.join(sorted(MODULES))}."
        )
    attention, ffn = MODULES[model_type]
    names = {"attention": [attention], "ffn": [ffn], "both": [attention, ffn]}[placement]
    return rf".*language_model\..*\.({'|'.join(names)})" if model_type in WITH_VISION else set(names)


def hidden_size(module: nn.Module, model: nn.Module) -> int:
    """Return the width of the hidden states that ``module`` takes and returns.

    The module's own configuration is read first, since that of a vision tower differs from the language model's.

    Raises:
        ValueError: Neither configuration holds a width.
    """
    configs: list[Any] = [getattr(owner, "config", None) for owner in (module, model)]
    for config in configs:
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        for name in ("hidden_size", "n_embd", "d_model"):
            if isinstance(size := getattr(text, name, None), int):
                return size
    raise ValueError(
        f"The width of the hidden states of {type(model).__name__} is unknown: a module-level adapter needs a model "
        "whose config has hidden_size (or n_embd, or d_model)."
    )
