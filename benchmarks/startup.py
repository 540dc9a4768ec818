"""From the start of the process to the first training step, caches warm: ``train.py`` and transformers' Trainer."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Goal, Result, Row, interleaved, ratios
from benchmarks.process import REPOSITORY
from benchmarks.training import BASE, contending, gsm8k
from cera.models.backbone import locate

IMPORTS = {
    "cera": "import train",
    "trainer": "from datasets import load_dataset; from peft import get_peft_model; "
    "from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Trainer",
}
"""What each needs before it does anything."""


def run(quick: bool) -> Result:
    """Goal: no longer than the Trainer with PEFT's LoRA.

    Floor: the imports. Ours are the Trainer's, and Lightning's and torchmetrics'.
    """
    return compare(locate(BASE), gsm8k(), rounds=1 if quick else 9)


def compare(base: str, data: Path, rounds: int, options: Sequence[str] = ()) -> Result:
    """Rounds of one step each, after one that fills the caches; arguments as in ``benchmarks.training.compare``."""
    starts = {name: contending(base, data, options, name, 1) for name in IMPORTS}
    interleaved(starts, rounds=1)
    runs = interleaved(starts, rounds)
    begun, ended = (
        {name: [one["steps"][0][moment] for one in of] for name, of in runs.items()} for moment in ("begin", "end")
    )
    what = "start-up: from the start of the process to the first step"
    rows = [
        Row(f"{what}, CeRA in train.py / Trainer + LoRA", ratios(begun["cera"], begun["trainer"]), Goal("<=", 1.0)),
        Row(f"{what}'s end (ours is larger), the same", ratios(ended["cera"], ended["trainer"])),
    ]
    imports = {name: import_seconds(statement) for name, statement in IMPORTS.items()}
    details = {"seconds_to_first_step": begun, "seconds_to_its_end": ended, "import_seconds": imports}
    return Result("startup", rows, "bfloat16", details)


def import_seconds(statement: str) -> dict[str, float]:
    """Seconds that each package's own modules take when ``statement`` is run in a process of its own."""
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
