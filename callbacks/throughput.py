"""Logs how fast training goes, over all ranks."""

import sys
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from cera.runs.loggers import log_now
from cera.training.throughput import Meter, TrainingFlops


class Throughput(Callback):
    """Logs, every so many optimizer steps and for the steps since the last time:

    - ``throughput/tokens_per_second``: of all ranks, padding not counted; without the time spent in validation;
    - ``throughput/padding_share``: padding among all positions, in [0, 1];
    - ``throughput/peak_memory_gib``: the most that any rank has needed since it started, allocated on the GPU or, on a
      CPU, resident;
    - ``throughput/mfu``: operations that the model asks for (``TrainingFlops``) as a share of what all
      devices could do, in [0, 1]; only where Lightning knows the device's peak, which is on many GPUs.

    Args:
        every: Optimizer steps between two logs.

    Raises:
        ValueError: ``every`` is less than 1.
    """

    def __init__(self, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"Throughput.every must be at least 1, got {every}.")
        self.every = every
        self._meter = Meter()
        self._last_step = 0
        self._peak: int | None = None
        self._flops: TrainingFlops | None = None
        self._work: float | Tensor = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin to count; a resumed run counts from where it goes on."""
        self._last_step = trainer.global_step
        self._peak = get_available_flops(trainer.strategy.root_device, _dtype_of_products(trainer))
        self._flops = TrainingFlops.from_model(pl_module.model) if self._peak else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._meter.start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it."""
        self._meter.pause()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; at the end of an optimizer step, log if it is time."""
        stepped = trainer.global_step > self._last_step
        self._last_step = trainer.global_step
        due = stepped and trainer.global_step % self.every == 0
        device = trainer.strategy.root_device
        if due and device.type == "cuda":
            torch.cuda.synchronize(device)  # what is still running belongs to these steps
        self._meter.add(batch)
        if self._flops is not None:
            self._work += self._flops(batch)
        if due:
            self._log(trainer, device)

    def _log(self, trainer: Trainer, device: torch.device) -> None:
        meter = self._meter
        ours = torch.tensor(
            [meter.tokens, meter.positions, meter.seconds, _peak_memory(device), float(self._work)], device=device
        )
        ranks = trainer.strategy.all_gather(ours).reshape(-1, len(ours))
        tokens, positions, _, _, work = ranks.sum(0).tolist()
        _, _, seconds, memory, _ = ranks.amax(0).tolist()
        values = {"tokens_per_second": tokens / seconds, "padding_share": 1 - tokens / positions}
        values["peak_memory_gib"] = memory / 2**30
        if self._peak:
            values["mfu"] = work / (seconds * len(ranks) * self._peak)
        log_now(trainer, {f"throughput/{name}": value for name, value in values.items()})
        meter.reset()
        self._work = 0.0


def _dtype_of_products(trainer: Trainer) -> torch.dtype:
    return {"bf16": torch.bfloat16, "16": torch.float16}.get(trainer.precision.split("-")[0], torch.float32)


def _peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held at a time."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
