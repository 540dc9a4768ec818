"""Inference on a batch whose rows have different adapters (``adapter_names``): CeRA against PEFT's LoRA."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from torch import Tensor

from benchmarks.decoding import BASE, adapted
from benchmarks.harness import Goal, Result, Row, interleaved, ratios, timed
from cera import CeraConfig
from cera.models.backbone import load_model

ADAPTERS = ("default", "second", "third", "fourth")
TARGETS = ["q_proj", "v_proj"]
LAST = torch.tensor([-1])
"""Logits wanted of the last token, as an index: of a slice, which is what ``generate`` takes by itself, torch makes a
batched product with a copy of the head for each row, and measuring that would hide the adapters."""


@dataclass(frozen=True)
class Size:
    """Of the batch.

    Attributes:
        rows: Each with the next of ``ADAPTERS``, in turn.
        prompt: Tokens of each row.
        tokens: Generated for each row.
        r: Of each adapter.
    """

    rows: int = 8
    prompt: int = 64
    tokens: int = 16
    r: int = 64


def run(quick: bool) -> Result:
    """Goal: at most the time of LoRA's mixed batch, for the prompts alone and for a generation that begins with them.

    Floor: the base without an adapter on the same batch (contender ``base``). Without mixed batches the adapters take
    their rows one after the other, and all the base's weights are read for each of them.
    """
    return compare(BASE, Size(), rounds=2 if quick else 9)


def compare(base: str, size: Size, rounds: int) -> Result:
    """Rounds of the base, mixed CeRA, mixed LoRA, and CeRA one adapter after the other."""
    cera = CeraConfig(r=size.r, target_modules=TARGETS, task_type="CAUSAL_LM")
    lora = LoraConfig(r=size.r, lora_alpha=2 * size.r, target_modules=TARGETS, task_type="CAUSAL_LM")
    models = {"CeRA": with_adapters(base, cera), "LoRA": with_adapters(base, lora)}
    alone: Any = load_model(base, torch.bfloat16).eval()
    names = [ADAPTERS[row % len(ADAPTERS)] for row in range(size.rows)]
    ids = torch.randint(alone.config.vocab_size, (size.rows, size.prompt), generator=torch.Generator().manual_seed(0))
    works: dict[str, Callable[..., Any]] = {
        f"prompts of {size.prompt} tokens": prefill,
        f"generating {size.tokens} tokens": partial(generate, tokens=size.tokens),
    }
    rows, details = [], {}
    for what, work in works.items():
        contenders = {
            "base": partial(work, alone, ids),
            **{name: partial(work, model, ids, adapter_names=names) for name, model in models.items()},
            "CeRA, one adapter after the other": partial(in_turn, work, models["CeRA"], ids, names),
        }
        for contender in contenders.values():
            contender()  # warm up
        seconds = interleaved({name: timed(contender) for name, contender in contenders.items()}, rounds)
        title = f"mixed batch, {size.rows} rows, {len(ADAPTERS)} adapters, r={size.r}, {what}: time of CeRA"
        for other in ("LoRA", "base", "CeRA, one adapter after the other"):
            goal = Goal("<=", 1.0) if other == "LoRA" else None
            rows.append(Row(f"{title} / {other}", ratios(seconds["CeRA"], seconds[other]), goal))
        details[what] = seconds
    return Result("mixed", rows, "bfloat16", {**asdict(size), "adapters": len(ADAPTERS), "seconds": details})


def with_adapters(base: str, config: PeftConfig) -> Any:
    """``base`` in bf16 with a fresh adapter under each of the names, in bf16 too, in eval mode."""
    model = adapted(base, config)
    for name in ADAPTERS[1:]:
        model.add_adapter(name, config, autocast_adapter_dtype=False)
    return model.eval()


@torch.inference_mode()
def prefill(model: Any, ids: Tensor, **adapter_names: Sequence[str]) -> Tensor:
    """The logits (rows, 1, vocabulary) after the prompts ``ids`` (rows, length)."""
    return model(input_ids=ids, logits_to_keep=LAST, **adapter_names).logits


@torch.inference_mode()
def generate(model: Any, ids: Tensor, tokens: int, **adapter_names: Sequence[str]) -> Tensor:
    """Prompts ``ids`` (rows, length) and exactly that many more tokens, greedily: (rows, length + tokens)."""
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
    """What ``work`` returns for a mixed batch, from a call for the rows of each adapter."""
    found: dict[int, Tensor] = {}
    for name in dict.fromkeys(names):
        rows = [row for row, other in enumerate(names) if other == name]
        model.set_adapter(name)
        found.update(zip(rows, work(model, ids[rows]), strict=True))
    return torch.stack([found[row] for row in range(len(names))])
