"""Cost of a training step against rank, sequence length and layers: CeRA, PEFT's LoRA, and DoRA at one point.

A step is forward, backward and AdamW on one row of random tokens, with ``CausalLM.answer_nll`` for all contenders, on a
random Llama of SmolLM2's shape in bf16.
"""

import multiprocessing
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftConfig

from benchmarks.harness import RatioRow, Result, interleaved, ratios, timed
from benchmarks.logits import LABELLED, batch, module
from benchmarks.process import peak_bytes, reset_peak, resident_bytes
from cera import CeraConfig
from cera.training.throughput import TrainingFlops

VOCABULARY = 49_152  # SmolLM2's
TARGETS = ["q_proj", "v_proj"]
ONLY_AT_BASE = "DoRA"
T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """One setting; a series varies one field of SmolLM2's 30 layers with r=64 and a row of 512 tokens.

    Attributes:
        rank: r of the adapter.
        length: Tokens of the row, the only one of the batch.
        layers: Layers of the model, each with an adapter at its queries and values.
    """

    rank: int = 64
    length: int = 512
    layers: int = 30


FULL = {
    "rank": (8, 16, 32, 64, 128, 256, 512),
    "length": (128, 256, 512, 1024, 2048, 4096),
    "layers": (4, 8, 15, 30),
}
QUICK = {"rank": (64, 512), "length": (128,), "layers": (8,)}


def run(quick: bool) -> Result:
    """No goal: the ratios show whether the cost of CeRA grows as that of LoRA does.

    Floor of the time: the operations of the step (``TrainingFlops``) at the rate of a product of two square bf16
    matrices of size 2048, measured in the same run. Peak memory is the growth over the loaded model: activations,
    gradients and optimizer state.
    """
    if quick:
        return measure(Point(length=256), QUICK, rounds=1, at_least=0.3)
    return measure(Point(), FULL, rounds=2)


def measure(base: Point, series: Mapping[str, Sequence[int]], rounds: int, at_least: float = 1.0) -> Result:
    """Compare all adapters at each point, with each measurement in a process of its own.

    Args:
        base: The point that all series share.
        series: Values of a field of ``Point``, by the field's name.
        rounds: Number of rounds.
        at_least: Minimum seconds of steps per adapter and round.
    """
    points = dict.fromkeys(replace(base, **{field: value}) for field, values in series.items() for value in values)
    rate = [in_process(product_rate) for _ in range(rounds)]
    rows, measured = [], []
    for point in points:
        names = [name for name in adapters(point.rank) if name != ONLY_AT_BASE or point == base]
        turns = {name: partial(in_process, step_cost, point, name, at_least) for name in names}
        costs = interleaved(turns, rounds)
        seconds = {name: [cost["seconds"] for cost in rounds_] for name, rounds_ in costs.items()}
        growth = {name: [cost["bytes"] for cost in rounds_] for name, rounds_ in costs.items()}
        what = f"training step, r={point.rank} n={point.length} layers={point.layers}"
        for name in names[1:]:
            rows.append(RatioRow(f"{what}: tokens/s of CeRA / {name}", ratios(seconds[name], seconds["CeRA"])))
            rows.append(RatioRow(f"{what}: peak memory of CeRA / {name}", ratios(growth["CeRA"], growth[name])))
        floor = costs["CeRA"][0]["flops"] / median(rate)
        measured.append({**asdict(point), "seconds": seconds, "bytes": growth, "floor_seconds": floor})
    details = {"base": asdict(base), "labelled": LABELLED, "product_flops_per_second": rate, "points": measured}
    return Result("scaling", rows, "bfloat16", details)


def in_process(function: Callable[..., T], *arguments: Any) -> T:
    """Return the result of ``function`` in a fresh process, whose allocator holds no memory to reuse.

    A fork server that has imported this module starts it in a fraction of a second; arguments are pickled.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    quiet = partial(warnings.filterwarnings, "ignore", category=FutureWarning, module="transformers")
    with ProcessPoolExecutor(1, context, initializer=quiet) as process:
        return process.submit(function, *arguments).result()


def adapters(r: int) -> dict[str, PeftConfig]:
    """Return the contenders by name, as in ``configs/adapters``, CeRA first."""
    return {
        "CeRA": CeraConfig(r=r, dropout=0.1, target_modules=TARGETS, task_type="CAUSAL_LM"),
        "LoRA": LoraConfig(r=r, lora_alpha=2 * r, target_modules=TARGETS, task_type="CAUSAL_LM"),
        "DoRA": LoraConfig(r=r, lora_alpha=2 * r, target_modules=TARGETS, task_type="CAUSAL_LM", use_dora=True),
    }


def step_cost(point: Point, name: str, at_least: float, vocabulary: int = VOCABULARY) -> dict[str, float]:
    """Return the cost of a training step in this process, which should be a fresh one.

    Args:
        point: Rank, length and layers.
        name: Name in ``adapters``.
        at_least: Minimum seconds of timed steps, after a first step that is not timed.
        vocabulary: Vocabulary size of the model.

    Returns:
        ``seconds`` per step, peak growth of memory in ``bytes``, and ``flops`` of the step.
    """
    model = module(vocabulary, point.layers, adapters(point.rank)[name])
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=model.learning_rate)
    data = batch(vocabulary, 1, point.length)

    def step() -> None:
        model.answer_nll(data)[0].mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.answer_nll(batch(vocabulary, 1, 8))[0].mean().backward()  # a first step loads libraries
    optimizer.zero_grad(set_to_none=True)
    before = resident_bytes()
    reset_peak()
    step()  # creates the optimizer state
    seconds = timed(step, at_least)()
    labels, pairs = round(LABELLED * point.length), point.length * (point.length + 1) / 2
    flops = TrainingFlops.from_model(model.model).count(point.length, labels, pairs)
    return {"seconds": seconds, "bytes": peak_bytes() - before, "flops": flops}


def product_rate(size: int = 2048, at_least: float = 0.5) -> float:
    """Return the operations per second of a product of two square bf16 matrices."""
    left, right = torch.randn(2, size, size, dtype=torch.bfloat16)
    product = partial(torch.mm, left, right)
    product()  # warm up
    return 2 * size**3 / timed(product, at_least)()
