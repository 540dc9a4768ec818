"""Inference on 32 rows with 16 adapters (``adapter_names``): CeRA in groups against PEFT's LoRA in a loop."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn

from benchmarks.decoding import BASE
from benchmarks.harness import Goal, RatioRow, Result, interleaved, ratios, timed
from benchmarks.layer import SMOL, Pair
from benchmarks.mixed import TARGETS, generate, prefill
from cera import CeraConfig
from cera.models.backbone import load_model

KINDS = ("CeRA", "LoRA")
"""The methods that are compared."""

STD = 0.02
"""Standard deviation of the adapters' weights: like those of trained adapters, none of them is zero."""


@dataclass(frozen=True)
class BatchSize:
    """Size of the mixed batch.

    Attributes:
        rows: Number of rows; they use the adapters in turn.
        adapters: Number of adapters.
        prompt: Prompt tokens per row.
        tokens: Generated tokens per row.
        r: Rank of each adapter.
    """

    rows: int = 32
    adapters: int = 16
    prompt: int = 64
    tokens: int = 16
    r: int = 64

    @property
    def names(self) -> list[str]:
        """Adapter of each row."""
        return [f"tenant{row % self.adapters}" for row in range(self.rows)]


def run(quick: bool) -> Result:
    """Goals: in the model at least 80% of the way from PEFT's mixed batch to the base alone; a pair of layers at least
    twice as fast as PEFT's.

    Floor: the base model, or the frozen layers, without an adapter on the same batch (contender ``base``). The share of
    the way is (PEFT - CeRA) / (PEFT - base) in the time of one round.
    """
    return compare(BASE, BatchSize(), rounds=2 if quick else 9)


def compare(base: str, size: BatchSize, rounds: int, at_least: float = 0.1) -> Result:
    """Compare the base, mixed CeRA and mixed LoRA: a pair of layers for a token and for prompts, and a whole model.

    Args:
        base: Name of the base model.
        size: Size of the batch.
        rounds: Number of rounds.
        at_least: Minimum seconds per contender and round for the layers.
    """
    rows, details = [], {}
    for length in (1, size.prompt):
        seconds = layer_seconds(size, length, rounds, at_least)
        what = f"q/v pair, {length} tokens per row"
        times = ratios(seconds["LoRA"], seconds["CeRA"])
        rows.append(RatioRow(f"{_title(size)}, {what}: time of LoRA / CeRA", times, Goal(">=", 2.0)))
        details[what] = seconds
    models = {name: with_adapters(load_model(base, torch.bfloat16), size, cera=name == "CeRA") for name in KINDS}
    base_model: Any = load_model(base, torch.bfloat16).eval()
    shape, generator = (size.rows, size.prompt), torch.Generator().manual_seed(0)
    ids = torch.randint(base_model.config.vocab_size, shape, generator=generator)
    for what, work in {
        f"prompts of {size.prompt} tokens": prefill,
        f"generating {size.tokens} tokens": partial(generate, tokens=size.tokens),
    }.items():
        contenders = {
            "base": partial(work, base_model, ids),
            **{name: partial(work, model, ids, adapter_names=size.names) for name, model in models.items()},
        }
        for contender in contenders.values():
            contender()  # warm up
        seconds = interleaved({name: timed(contender) for name, contender in contenders.items()}, rounds)
        title = f"{_title(size)}, {what}"
        rows.append(RatioRow(f"{title}: share of the way from LoRA to the base", shares(seconds), Goal(">=", 0.8)))
        rows += [RatioRow(f"{title}: time of {kind} / base", ratios(seconds[kind], seconds["base"])) for kind in KINDS]
        details[what] = seconds
    return Result("mixed_many", rows, "bfloat16", {**asdict(size), "seconds": details})


def _title(size: BatchSize) -> str:
    return f"{size.rows} rows, {size.adapters} adapters, r={size.r}"


def shares(seconds: dict[str, list[float]]) -> list[float]:
    """Return the share of the way from LoRA's time to the base's that CeRA goes, round by round."""
    rounds = zip(seconds["LoRA"], seconds["CeRA"], seconds["base"], strict=True)
    return [(lora - cera) / (lora - base) for lora, cera, base in rounds]


def layer_seconds(size: BatchSize, length: int, rounds: int, at_least: float) -> dict[str, list[float]]:
    """Return the seconds that a pair of SmolLM2's layers takes for rows of ``length`` tokens, for each contender."""
    x = torch.randn(size.rows, length, SMOL[0], dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    pairs: dict[str, Any] = {"base": _pair()}
    pairs |= {name: with_adapters(_pair(), size, cera=name == "CeRA") for name in KINDS}
    calls = {
        name: partial(pair, x, **({} if name == "base" else {"adapter_names": size.names}))
        for name, pair in pairs.items()
    }
    with torch.inference_mode():
        for call in calls.values():
            call()  # warm up
        return interleaved({name: timed(call, at_least) for name, call in calls.items()}, rounds)


def _pair() -> nn.Module:
    torch.manual_seed(0)
    return Pair(*SMOL).to(torch.bfloat16).requires_grad_(False)


def with_adapters(model: Any, size: BatchSize, cera: bool) -> Any:
    """Return ``model`` with the adapters of ``size.names`` as CeRA or LoRA, all in bf16, in eval mode."""
    config: PeftConfig
    if cera:
        config = CeraConfig(r=size.r, target_modules=TARGETS)
    else:
        config = LoraConfig(r=size.r, lora_alpha=2 * size.r, target_modules=TARGETS)
    first, *others = dict.fromkeys(size.names)
    adapted: Any = get_peft_model(model, config, adapter_name=first, autocast_adapter_dtype=False)
    for name in others:
        adapted.add_adapter(name, config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".tenant" in name:
                parameter.normal_(std=STD, generator=generator)
    return adapted.eval()
