"""One pair of adapted layers, q_proj and v_proj, forward and backward: CeRA against PEFT's LoRA."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import Goal, RatioRow, Result, interleaved, ratios, timed
from benchmarks.operations import seconds_by_operation
from cera import CeraConfig

TOKENS = 2048
SMOL, LLAMA_3_8B = (576, 192), (4096, 1024)
"""Width of the hidden states, and width of the keys and values."""
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
"""Further baselines, without a goal."""
PROFILED = ("CeRA", "LoRA in bf16")


class Pair(nn.Module):
    """Two linear layers that read the same input, as a query and a value projection do."""

    def __init__(self, width: int, kv_width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``x`` (n, width) to (n, width) and (n, kv_width)."""
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


def compare(
    sizes: Sequence[tuple[tuple[int, int], int]], tokens: int, rounds: int, at_least: float = 0.1, device: str = "cpu"
) -> Result:
    """Compare all contenders at each size.

    Args:
        sizes: Each ((width, kv_width), r).
        tokens: Number of tokens n.
        rounds: Number of rounds.
        at_least: Minimum seconds per contender and round.
        device: ``cpu`` or ``cuda``.
    """
    wait = torch.cuda.synchronize if device == "cuda" else None
    rows, details = [], {}
    for (width, kv_width), r in sizes:
        steps = contenders(width, kv_width, r, tokens, device)
        saved = {name: step.saved_bytes() for name, step in steps.items()}  # also warms up
        seconds = interleaved({name: timed(step, at_least, wait) for name, step in steps.items()}, rounds)
        size = f"q/v pair, n={tokens} d={width} r={r}"
        for baseline in [*BASELINES, *OTHERS]:
            time, memory = (TIME, MEMORY) if baseline in BASELINES else (None, None)
            times = ratios(seconds["CeRA"], seconds[baseline])
            rows.append(RatioRow(f"{size}: time of CeRA / {baseline}", times, time))
            rows.append(
                RatioRow(f"{size}: saved bytes of CeRA / {baseline}", [saved["CeRA"] / saved[baseline]], memory)
            )
        details[size] = {
            "seconds": seconds,
            "saved_bytes": saved,
            "floor": floor(width, kv_width, r, tokens),
            "operations": {name: steps[name].operations() for name in PROFILED},
        }
    return Result("layer", rows, "bfloat16", details)


def floor(width: int, kv_width: int, r: int, tokens: int) -> dict[str, int]:
    """Return the operations of the frozen pair and the adapter (forward, backward), and the input's bytes in bf16."""
    return {
        "frozen_flops": 4 * tokens * width * (width + kv_width),
        "adapter_flops": 6 * tokens * r * (3 * width + kv_width),
        "bytes": 2 * tokens * width,
    }


@dataclass(frozen=True)
class Step:
    """A forward and backward pass of ``model``. The input requires a gradient, as in all layers but the first.

    Args:
        model: Maps ``x`` to one output for each of ``gradients``.
        x: Input, (n, width).
        gradients: Gradients of the loss with respect to the outputs.
        autocast: Whether the forward pass runs under autocast to bf16.
    """

    model: nn.Module
    x: Tensor
    gradients: Sequence[Tensor]
    autocast: bool = False

    def __call__(self) -> None:
        """Run both passes and discard the gradients."""
        hidden = self.x.detach().requires_grad_()
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.autocast):
            outputs = self.model(hidden)
        torch.autograd.backward(list(outputs), list(self.gradients))
        self.model.zero_grad(set_to_none=True)

    def saved_bytes(self) -> int:
        """Return the bytes that autograd saves for the backward pass, each storage once, without parameters."""
        parameters = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        saved: dict[int, torch.UntypedStorage] = {}  # keeps the storages alive, so that no address is reused

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                saved[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self()
        return sum(storage.nbytes() for storage in saved.values())

    def operations(self, calls: int = 10) -> dict[str, float]:
        """Return the seconds per call in each torch operation, without nested ones, by name."""
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(calls):
                self()
        spent = seconds_by_operation(profiled, calls)
        return {name: seconds for name, seconds in spent.items() if name.startswith("aten::")}


def contenders(width: int, kv_width: int, r: int, tokens: int, device: str = "cpu") -> dict[str, Step]:
    """Return a step of each contender by name; all share frozen weights and input."""
    targets = ["q_proj", "v_proj"]
    cera = CeraConfig(r=r, dropout=0.1, target_modules=targets)  # as in configs/adapters
    lora, lora_with_dropout, dora = (
        LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets, **options)
        for options in ({}, {"lora_dropout": 0.1}, {"use_dora": True})
    )
    torch.manual_seed(0)
    x = torch.randn(tokens, width, dtype=torch.bfloat16).to(device)
    gradients = [torch.randn(tokens, out, dtype=torch.bfloat16).to(device) for out in (width, kv_width)]

    def step(config: PeftConfig | None, fp32: bool = False, autocast: bool = False) -> Step:
        torch.manual_seed(0)
        model: Any = Pair(width, kv_width).to(torch.bfloat16).requires_grad_(False)
        if config is not None:
            model = get_peft_model(model, config, autocast_adapter_dtype=fp32).train()
        return Step(model.to(device), x, gradients, autocast)

    return {
        "frozen": step(None),
        "CeRA": step(cera),
        "LoRA in bf16": step(lora),
        "LoRA as get_peft_model makes it": step(lora, fp32=True),
        "LoRA under autocast": step(lora, fp32=True, autocast=True),
        "LoRA in bf16 with CeRA's dropout": step(lora_with_dropout),
        "DoRA in bf16": step(dora),
    }
