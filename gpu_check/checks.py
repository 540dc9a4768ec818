"""The checks in order of worth: what a time budget leaves out comes last."""

from dataclasses import dataclass
from pathlib import Path

TESTS = Path("tests") / "gpu"


@dataclass(frozen=True)
class Check:
    """A file of tests, or a measurement, each in a process of its own.

    Attributes:
        name: Its name.
        what: What it shows.
        seconds: Time after which it is stopped. On a GPU it should take much less; none has run it yet.
        measures: Whether it is one of ``gpu_check.measurements``; otherwise it is a file of ``TESTS``.
    """

    name: str
    what: str
    seconds: float
    measures: bool = False

    def command(self, python: str, device: str, base: Path, out: Path) -> list[str]:
        """Return what runs it and writes its result to ``out``: JSON of a measurement, or JUnit's XML of tests."""
        if self.measures:
            options = [f"--base={base}", f"--device={device}", f"--out={out}"]
            return [python, "-m", "gpu_check.measurements", self.name, *options]
        file = TESTS / f"test_gpu_{self.name}.py"
        quiet = ["-q", "-p", "no:cacheprovider", "--durations=0", "-m", "gpu"]
        return [python, "-m", "pytest", *quiet, f"--device={device}", f"--junitxml={out}", str(file)]


CHECKS = (
    Check("adapters", "Adapters compute what they compute in fp32 on the CPU, in fp32 and in bf16", 120),
    Check("packing", "Packed documents are apart: eager, SDPA, FlexAttention, FlashAttention", 180),
    Check("estimate", "The estimated memory is within 10% of `max_memory_allocated`", 180),
    Check("training", "Training: tokens/s and MFU against transformers' Trainer and TRL", 300, measures=True),
    Check("together", "Adapters in one pass over one copy of the base", 120, measures=True),
    Check("layer", "Forward and backward of a pair of adapted layers against LoRA", 120, measures=True),
    Check("decoding", "Decoding: the tokens with CUDA graphs are those without", 120),
    Check("decoding", "Decoding: time of a token against LoRA, plain and with CUDA graphs", 180, measures=True),
    Check("compiled", "Compiled layers compute what plain ones compute", 120),
    Check("quantized", "A base in nf4 gives the gradients of its rounded weights", 90),
    Check("zero", "ZeRO-2 and ZeRO-3 on one device train as without DeepSpeed", 300),
)
