"""Small random models of the architectures that CeRA is tested on, by ``model_type``."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 64
INPUT_IDS = torch.arange(24).view(3, 8)

LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = LLAMA | {"head_dim": 8}
NO_GROUPS = LLAMA | {"num_key_value_heads": 4}
QWEN_MOE = LLAMA | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MOE: dict[str, dict[str, Any]] = {
    "mixtral": LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": QWEN_MOE | {"shared_expert_intermediate_size": 40},
    "qwen3_moe": QWEN_MOE,
    "olmoe": LLAMA | {"num_experts": 4, "num_experts_per_tok": 3},
    "gpt_oss": LLAMA | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "smollm3": LLAMA,
    "olmo2": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": GEMMA,
    "gemma": GEMMA,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "phi": NO_GROUPS | {"embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "phi3": LLAMA,
    "gpt2": LLAMA
    | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48}
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "gpt_neox": NO_GROUPS | {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    **MOE,
}


def build(model_type: str, **overrides: Any) -> PreTrainedModel:
    """The same random weights, norms and biases among them, at every call."""
    config = AutoConfig.for_model(model_type, **SETTINGS[model_type] | overrides)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()
