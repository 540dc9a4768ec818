"""Logs the speed and memory of training over all ranks."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from cera.memory.process import peak_bytes
from cera.runs.loggers import log_now
from cera.training.throughput import Meter, TrainingFlops


class Throughput(Callback):
    """Logs at regular intervals, for the optimizer steps since the last log:

    - ``throughput/tokens_per_second``: over all ranks, without padding and without the time spent in validation;
    - ``throughput/padding_share``: share of padding in all positions, in [0, 1];
    - ``throughput/peak_memory_gib``: largest memory of any rank since its start, allocated on a GPU or, on a CPU,
      resident;
    - ``throughput/mfu``: the model's floating-point operations (``TrainingFlops``) as a share of the peak of all
      devices, in [0, 1]; logged only where Lightning knows the device's peak, which is on many GPUs.

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
        """Start counting at the current step."""
        self._last_step = trainer.global_step
        self._peak = get_available_flops(trainer.strategy.root_device, _dtype_of_products(trainer))
        self._flops = TrainingFlops.from_model(pl_module.model) if self._peak else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._meter.start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pause the clock."""
        self._meter.pause()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; log if an optimizer step that is due has ended."""
        stepped = trainer.global_step > self._last_step
        self._last_step = trainer.global_step
        due = stepped and trainer.global_step % self.every == 0
        device = trainer.strategy.root_device
        if due and device.type == "cuda":
            torch.cuda.synchronize(device)  # wait for kernels of these steps that still run
        self._meter.add(batch)
        if self._flops is not None:
            self._work += self._flops(batch)
        if due:
            self._log(trainer, device)

    def _log(self, trainer: Trainer, device: torch.device) -> None:
        meter = self._meter
        ours = torch.tensor(
            [
                meter.tokens,
                meter.positions,
                meter.seconds,
                peak_bytes(device if device.type == "cuda" else None),
                float(self._work),
            ],
            device=device,
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
