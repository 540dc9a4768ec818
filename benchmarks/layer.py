"""One pair of adapted layers, q_proj and v_proj, forward and backward: CeRA against PEFT's LoRA."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import Goal, Result, Row, interleaved, ratios, timed
from benchmarks.operations import seconds_by_operation
from cera import CeraConfig

TOKENS = 2048
SMOL, LLAMA_3_8B = (576, 192), (4096, 1024)
"""(width of the hidden states, of the keys and values)."""
TIME, MEMORY = Goal("<=", 1.0), Goal("<=", 0.8)
BASELINES = {
    "LoRA in bf16": "autocast_adapter_dtype=False",
    "LoRA as get_peft_model makes it": "an fp32 adapter",
    "LoRA under autocast": "an fp32 adapter whose products run in bf16, as in Trainer(bf16=True)",
}
OTHERS = {
    "LoRA in bf16 with CeRA's dropout": "lora_dropout=0.1, on the input of the adapter",
    "DoRA in bf16": "use_dora=True",
}
"""Baselines without a goal."""
PROFILED = ("CeRA", "LoRA in bf16")


class Pair(nn.Module):
    """Two linear layers that read the same input, as a query and a value projection do."""

    def __init__(self, width: int, kv_width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, width) -> (n, width), (n, kv_width)."""
        return self.q_proj(x), self.v_proj(x)


def run(quick: bool) -> Result:
    """Goal: at most the time of LoRA's forward and backward, and at most 0.8 times its saved activations.

    Floor of the time: the frozen pair alone (contender ``frozen``), ``4 n d (d + kv)`` operations, plus the
    adapter's ``6 n r (3 d + kv)``. Floor of the memory: the input, ``2 n d`` bytes in bf16, from which all else can
    be computed again.
    """
    if quick:
        return compare([(SMOL, 16), (SMOL, 128), (LLAMA_3_8B, 64)], TOKENS, rounds=3)
    return compare([(widths, r) for widths in (SMOL, LLAMA_3_8B) for r in (16, 64, 128, 512)], TOKENS, rounds=15)


def compare(sizes: Sequence[tuple[tuple[int, int], int]], tokens: int, rounds: int, at_least: float = 0.1) -> Result:
    """Rounds of all contenders for each of the sizes.

    Args:
        sizes: ((width, kv_width), r).
        tokens: n.
        rounds: How often each contender has its turn.
        at_least: Seconds a turn.
    """
    rows, details = [], {}
    for (width, kv_width), r in sizes:
        steps = contenders(width, kv_width, r, tokens)
        saved = {name: step.saved_bytes() for name, step in steps.items()}  # warms up, too
        seconds = interleaved({name: timed(step, at_least) for name, step in steps.items()}, rounds)
        size = f"q/v pair, n={tokens} d={width} r={r}"
        for baseline in [*BASELINES, *OTHERS]:
            time, memory = (TIME, MEMORY) if baseline in BASELINES else (None, None)
            times = ratios(seconds["CeRA"], seconds[baseline])
            rows.append(Row(f"{size}: time of CeRA / {baseline}", times, time))
            rows.append(Row(f"{size}: saved bytes of CeRA / {baseline}", [saved["CeRA"] / saved[baseline]], memory))
        details[size] = {
            "seconds": seconds,
            "saved_bytes": saved,
            "floor": floor(width, kv_width, r, tokens),
            "operations": {name: steps[name].operations() for name in PROFILED},
        }
    return Result("layer", rows, "bfloat16", details)


def floor(width: int, kv_width: int, r: int, tokens: int) -> dict[str, int]:
    """Operations of the frozen pair and of the adapter, forward and backward; bytes of the input in bf16."""
    return {
        "frozen_flops": 4 * tokens * width * (width + kv_width),
        "adapter_flops": 6 * tokens * r * (3 * width + kv_width),
        "bytes": 2 * tokens * width,
    }


@dataclass(frozen=True)
class Step:
    """A forward and backward of ``model``; the input wants a gradient, as in any layer but the first adapted one.

    Args:
        model: Maps ``x`` to one output for each of ``gradients``.
        x: (n, width).
        gradients: Of the loss with respect to the outputs.
        autocast: Whether the forward pass runs under autocast to bf16.
    """

    model: nn.Module
    x: Tensor
    gradients: Sequence[Tensor]
    autocast: bool = False

    def __call__(self) -> None:
        """Both passes, after which the gradients are dropped."""
        hidden = self.x.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            outputs = self.model(hidden)
        torch.autograd.backward(list(outputs), list(self.gradients))
        self.model.zero_grad(set_to_none=True)

    def saved_bytes(self) -> int:
        """Bytes that autograd keeps for the backward pass: each storage once, the parameters' not."""
        parameters = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}  # holds on to them, so that no address comes twice

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self()
        return sum(storage.nbytes() for storage in kept.values())

    def operations(self, calls: int = 10) -> dict[str, float]:
        """Seconds of a call in each kind of torch's operations, those within it left out, by its name."""
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(calls):
                self()
        spent = seconds_by_operation(profiled, calls)
        return {name: seconds for name, seconds in spent.items() if name.startswith("aten::")}


def contenders(width: int, kv_width: int, r: int, tokens: int) -> dict[str, Step]:
    """A step of each contender, by name; all have the same frozen weights and input."""
    targets = ["q_proj", "v_proj"]
    cera = CeraConfig(r=r, dropout=0.1, target_modules=targets)  # as in configs/adapters
    lora, dropping, dora = (
        LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets, **options)
        for options in ({}, {"lora_dropout": 0.1}, {"use_dora": True})
    )
    torch.manual_seed(0)
    x = torch.randn(tokens, width, dtype=torch.bfloat16)
    gradients = [torch.randn(tokens, out, dtype=torch.bfloat16) for out in (width, kv_width)]

    def step(config: PeftConfig | None, fp32: bool = False, autocast: bool = False) -> Step:
        torch.manual_seed(0)
        model: Any = Pair(width, kv_width).to(torch.bfloat16).requires_grad_(False)
        if config is not None:
            model = get_peft_model(model, config, autocast_adapter_dtype=fp32).train()
        return Step(model, x, gradients, autocast)

    return {
        "frozen": step(None),
        "CeRA": step(cera),
        "LoRA in bf16": step(lora),
        "LoRA as get_peft_model makes it": step(lora, fp32=True),
        "LoRA under autocast": step(lora, fp32=True, autocast=True),
        "LoRA in bf16 with CeRA's dropout": step(dropping),
        "DoRA in bf16": step(dora),
    }
