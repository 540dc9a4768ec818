"""Inference on a batch whose rows use different adapters (``adapter_names``): CeRA against PEFT's LoRA."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from torch import Tensor

from benchmarks.decoding import BASE, adapted
from benchmarks.harness import Goal, RatioRow, Result, interleaved, ratios, timed
from cera import CeraConfig
from cera.models.backbone import load_model

ADAPTERS = ("default", "second", "third", "fourth")
TARGETS = ["q_proj", "v_proj"]
LAST = torch.tensor([-1])
"""Index of the token whose logits are computed. With the slice that ``generate`` passes by default, torch computes a
batched product with a copy of the head for each row, which would hide the cost of the adapters."""


@dataclass(frozen=True)
class BatchSize:
    """Size of the mixed batch.

    Attributes:
        rows: Number of rows; they use ``ADAPTERS`` in turn.
        prompt: Prompt tokens per row.
        tokens: Generated tokens per row.
        r: Rank of each adapter.
    """

    rows: int = 8
    prompt: int = 64
    tokens: int = 16
    r: int = 64


def run(quick: bool) -> Result:
    """Goal: at most the time of LoRA's mixed batch, for the prompts alone and for prompts followed by generation.

    Floor: the base model without an adapter on the same batch (contender ``base``). Without mixed batches, the rows of
    each adapter are processed in turn, and all weights of the base model are read for each adapter.
    """
    return compare(BASE, BatchSize(), rounds=2 if quick else 9)


def compare(base: str, size: BatchSize, rounds: int) -> Result:
    """Compare the base, mixed CeRA, mixed LoRA, and CeRA one adapter after the other."""
    cera = CeraConfig(r=size.r, target_modules=TARGETS, task_type="CAUSAL_LM")
    lora = LoraConfig(r=size.r, lora_alpha=2 * size.r, target_modules=TARGETS, task_type="CAUSAL_LM")
    models = {"CeRA": with_adapters(base, cera), "LoRA": with_adapters(base, lora)}
    base_model: Any = load_model(base, torch.bfloat16).eval()
    names = [ADAPTERS[row % len(ADAPTERS)] for row in range(size.rows)]
    ids = torch.randint(
        base_model.config.vocab_size, (size.rows, size.prompt), generator=torch.Generator().manual_seed(0)
    )
    workloads: dict[str, Callable[..., Any]] = {
        f"prompts of {size.prompt} tokens": prefill,
        f"generating {size.tokens} tokens": partial(generate, tokens=size.tokens),
    }
    rows, details = [], {}
    for what, work in workloads.items():
        contenders = {
            "base": partial(work, base_model, ids),
            **{name: partial(work, model, ids, adapter_names=names) for name, model in models.items()},
            "CeRA, one adapter after the other": partial(in_turn, work, models["CeRA"], ids, names),
        }
        for contender in contenders.values():
            contender()  # warm up
        seconds = interleaved({name: timed(contender) for name, contender in contenders.items()}, rounds)
        title = f"mixed batch, {size.rows} rows, {len(ADAPTERS)} adapters, r={size.r}, {what}: time of CeRA"
        for other in ("LoRA", "base", "CeRA, one adapter after the other"):
            goal = Goal("<=", 1.0) if other == "LoRA" else None
            rows.append(RatioRow(f"{title} / {other}", ratios(seconds["CeRA"], seconds[other]), goal))
        details[what] = seconds
    return Result("mixed", rows, "bfloat16", {**asdict(size), "adapters": len(ADAPTERS), "seconds": details})


def with_adapters(base: str, config: PeftConfig) -> Any:
    """Return ``base`` with a fresh adapter under each name of ``ADAPTERS``, all in bf16, in eval mode."""
    model = adapted(base, config)
    for name in ADAPTERS[1:]:
        model.add_adapter(name, config, autocast_adapter_dtype=False)
    return model.eval()


@torch.inference_mode()
def prefill(model: Any, ids: Tensor, **adapter_names: Sequence[str]) -> Tensor:
    """Return the logits (rows, 1, vocabulary) after the prompts ``ids`` (rows, length)."""
    return model(input_ids=ids, logits_to_keep=LAST, **adapter_names).logits


@torch.inference_mode()
def generate(model: Any, ids: Tensor, tokens: int, **adapter_names: Sequence[str]) -> Tensor:
    """Extend ``ids`` (rows, length) greedily by exactly ``tokens`` tokens to (rows, length + tokens)."""
    return model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        logits_to_keep=LAST,
        **adapter_names,
    )


def in_turn(work: Callable[[Any, Tensor], Tensor], model: Any, ids: Tensor, names: Sequence[str]) -> Tensor:
    """Return the result of ``work`` for a mixed batch, from one call per adapter for its rows."""
    outputs: dict[int, Tensor] = {}
    for name in dict.fromkeys(names):
        rows = [row for row, other in enumerate(names) if other == name]
        model.set_adapter(name)
        outputs.update(zip(rows, work(model, ids[rows]), strict=True))
    return torch.stack([outputs[row] for row in range(len(names))])
