"""Time from the start of the process to the first training step, with warm caches: ``train.py`` and the Trainer."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Goal, RatioRow, Result, interleaved, ratios
from benchmarks.process import REPOSITORY
from benchmarks.training import BASE, contending, gsm8k
from cera.models.backbone import locate

IMPORTS = {
    "cera": "import cera.cli.train",
    "trainer": "from datasets import load_dataset; from peft import get_peft_model; "
    "from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Trainer",
}
"""Imports that each contender needs before it starts."""


def run(quick: bool) -> Result:
    """Goal: at most the time of the Trainer with PEFT's LoRA.

    Floor: the imports. ``train.py`` imports the same packages as the Trainer, plus Lightning and torchmetrics.
    """
    return compare(locate(BASE), gsm8k(), rounds=1 if quick else 9)


def compare(base: str, data: Path, rounds: int, options: Sequence[str] = ()) -> Result:
    """Compare runs of one step, after one that fills the caches; see ``benchmarks.training.compare``."""
    starts = {name: contending(base, data, options, name, 1) for name in IMPORTS}
    interleaved(starts, rounds=1)
    runs = interleaved(starts, rounds)
    begun, ended = (
        {name: [run["steps"][0][moment] for run in rounds_] for name, rounds_ in runs.items()}
        for moment in ("begin", "end")
    )
    what = "start-up: from the start of the process to the first step"
    rows = [
        RatioRow(
            f"{what}, CeRA in train.py / Trainer + LoRA", ratios(begun["cera"], begun["trainer"]), Goal("<=", 1.0)
        ),
        RatioRow(f"{what}'s end (ours is larger), the same", ratios(ended["cera"], ended["trainer"])),
    ]
    imports = {name: import_seconds(statement) for name, statement in IMPORTS.items()}
    details = {"seconds_to_first_step": begun, "seconds_to_its_end": ended, "import_seconds": imports}
    return Result("startup", rows, "bfloat16", details)


def import_seconds(statement: str) -> dict[str, float]:
    """Return the import seconds of each package's own modules when a fresh process runs ``statement``."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", statement],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    spent: Counter[str] = Counter()
    for microseconds, module in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", done.stderr, re.MULTILINE):
        spent[module.partition(".")[0]] += int(microseconds) / 1e6
    return dict(spent)
