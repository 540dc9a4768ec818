"""Training on GSM8K against DoRA: in ``train.py``, and with PEFT's DoRA in transformers' Trainer."""

from benchmarks.harness import Result
from benchmarks.training import compare_on_gsm8k


def run(quick: bool) -> Result:
    """No goal. The method is that of the training benchmark.

    Floor: that of training. In addition, DoRA computes the norms of all weights in each step.
    """
    contenders = ("cera", "trainer_dora") if quick else ("cera", "dora", "trainer_dora")
    return compare_on_gsm8k("dora", contenders, quick)
