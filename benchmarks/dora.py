"""Training on GSM8K against DoRA: in ``train.py``, and PEFT's in transformers' Trainer."""

from dataclasses import replace

from benchmarks.harness import Result
from benchmarks.training import BASE, compare, gsm8k
from cera.models.backbone import locate


def run(quick: bool) -> Result:
    """No goal. Measured as the training benchmark is.

    Floor: that of training; DoRA computes the norms of all weights anew in each step on top of it.
    """
    names = ("cera", "trainer_dora") if quick else ("cera", "dora", "trainer_dora")
    found = compare(names, locate(BASE), gsm8k(), steps=4 if quick else 8, rounds=1 if quick else 2)
    return replace(found, name="dora")
