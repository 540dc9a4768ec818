"""Where the attention and feed-forward modules of an architecture are, and how wide the hidden states."""

from typing import Any

from torch import nn

from cera.adapters.config import Placement

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
"""transformers' model type -> the names of the attention and of the feed-forward module in a decoder layer."""

WITH_VISION = {"gemma3"}
"""Model types whose language model lies in ``language_model``, beside other towers with modules of the same names."""


def default_targets(model_type: str, placement: Placement) -> set[str] | str:
    """The ``target_modules`` of a module-level adapter where none are given.

    Raises:
        ValueError: The architecture is not known here.
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
    """The width of the hidden states that ``module`` takes and returns.

    By the module's own configuration if it has one (a vision tower's is not the language model's), else the model's.

    Raises:
        ValueError: Neither tells.
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
