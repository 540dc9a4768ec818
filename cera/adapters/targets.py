"""What is adapted where a configuration names no ``target_modules``: by ``model_type``, queries and values.

That is the paper's choice (Section 3.1). Where a model projects queries, keys and values by one matrix (GPT-2's
``c_attn``, Phi-3's ``qkv_proj``, GPT-NeoX's ``query_key_value``) the default is this matrix: the branch has one
``W_up``, and a ``W_down`` whose output adds to queries, keys and values.
"""

from collections.abc import Sequence

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

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
"""``model_type`` -> names of modules or a regular expression: PEFT's table for LoRA, corrected and gone on with."""
