"""Estimates the memory of a training run for each ZeRO stage.

    run = TrainingRun("smol", "CeRA", module, rows=2, length=256, precision="bf16-true", stage=None, devices=1)
    for row in estimate(run):
        print(row.stage, row.memory.total)

Counted are weights, gradients, optimizer state (``model_states``) and the temporary tensors of a step
(``activations``). Not counted are Python and its libraries, a GPU's context, workspaces within kernels, and memory that
an allocator holds back.
"""

from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any

from cera.memory.activations import activations, adapted_skeleton, dtypes
from cera.memory.model_states import Memory, Sizes, ZeRO, without_deepspeed
from cera.training.module import CausalLM

STAGES = (0, 1, 2, 3)
PRECISIONS = ("bf16-true", "bf16-mixed", "16-true", "16-mixed", "32-true")


@dataclass(frozen=True)
class TrainingRun:
    """The settings of a training run that determine its memory.

    Attributes:
        name: Name of its configuration file.
        adapter: The adapter's name in the paper.
        module: The module to train, not yet built.
        rows: Rows in a micro-batch.
        length: Tokens in a row.
        precision: One of ``PRECISIONS``.
        stage: The configured ZeRO stage; ``None`` without DeepSpeed.
        devices: Number of devices.
        bucket: See ``ZeRO``.
        overlap: See ``ZeRO``.
    """

    name: str
    adapter: str
    module: CausalLM
    rows: int
    length: int
    precision: str
    stage: int | None
    devices: int
    bucket: int = ZeRO.bucket
    overlap: bool = ZeRO.overlap


@dataclass(frozen=True)
class MemoryRow:
    """The estimate for one run and ZeRO stage.

    Attributes:
        run: The training run.
        stage: ZeRO stage; ``None`` without DeepSpeed.
        memory: Memory that one process needs.
    """

    run: TrainingRun
    stage: int | None
    memory: Memory

    def asdict(self) -> dict[str, Any]:
        """Return the row for JSON, with sizes in bytes."""
        settings = {field.name: getattr(self.run, field.name) for field in fields(TrainingRun)}
        base = settings.pop("module").base
        configured = settings.pop("stage")
        about = {**settings, "own_stage": configured, "base": base, "stage": self.stage}
        return {**about, **asdict(self.memory), "total": self.memory.total}


def estimate(run: TrainingRun, labelled: float = 1.0) -> list[MemoryRow]:
    """Return a row for each ZeRO stage, preceded by one without DeepSpeed if the run is configured without it.

    Args:
        run: The training run.
        labelled: Share of the tokens that carry loss, in (0, 1].
    """
    module = run.module

    @cache
    def measure(precision: str) -> tuple[Sizes, int]:
        sizes = Sizes.from_model(adapted_skeleton(module), *dtypes(module, precision), module.quantization)
        peak = activations(module, precision, run.rows, run.length, labelled)
        return sizes, peak + sizes.dequantized

    rows = []
    if run.stage is None:
        rows.append(MemoryRow(run, None, without_deepspeed(*measure(run.precision), run.devices)))
    if module.adapter_dtype is None:  # training with DeepSpeed refuses adapter_dtype
        precision = run.precision.replace("mixed", "true")  # DeepSpeed casts the weights and uses no autocast
        for stage in STAGES:
            zero = ZeRO(stage, run.devices, run.bucket, run.overlap)
            rows.append(MemoryRow(run, stage, zero.memory(*measure(precision))))
    return rows
