"""Logs the speed and memory of training over all ranks."""

from typing import Any, NamedTuple

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from cera.memory.process import peak_bytes
from cera.runs.loggers import log_now
from cera.training.throughput import Meter, TrainingFlops


class Counts(NamedTuple):
    """What is counted between two logs, over all ranks; of the seconds, the largest."""

    tokens: float
    positions: float
    seconds: float
    work: float


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

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save what was counted since the last log, so that a resumed run logs the same share of padding."""
        checkpoint["throughput"] = self._totals(trainer)._asdict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue with the saved counts, which are of all ranks, on the first rank."""
        if "throughput" in checkpoint and trainer.is_global_zero:  # earlier versions saved none
            counts = Counts(**checkpoint["throughput"])
            self._meter.tokens, self._meter.positions = int(counts.tokens), int(counts.positions)
            self._meter.seconds, self._work = counts.seconds, counts.work

    def _totals(self, trainer: Trainer) -> "Counts":
        """Return the counts of all ranks; every rank must call this."""
        meter, device = self._meter, trainer.strategy.root_device
        ours = torch.tensor([meter.tokens, meter.positions, meter.seconds, float(self._work)], device=device)
        ranks = trainer.strategy.all_gather(ours).reshape(-1, len(ours))
        tokens, positions, _, work = ranks.sum(0).tolist()
        return Counts(tokens, positions, ranks[:, 2].max().item(), work)

    def _log(self, trainer: Trainer, device: torch.device) -> None:
        counts = self._totals(trainer)
        peak = torch.tensor(peak_bytes(device if device.type == "cuda" else None), device=device)
        memory = trainer.strategy.all_gather(peak).max().item()
        values = {
            "tokens_per_second": counts.tokens / counts.seconds,
            "padding_share": 1 - counts.tokens / counts.positions,
            "peak_memory_gib": memory / 2**30,
        }
        if self._peak:
            values["mfu"] = counts.work / (counts.seconds * trainer.world_size * self._peak)
        log_now(trainer, {f"throughput/{name}": value for name, value in values.items()})
        self._meter.reset()
        self._work = 0.0


def _dtype_of_products(trainer: Trainer) -> torch.dtype:
    return {"bf16": torch.bfloat16, "16": torch.float16}.get(trainer.precision.split("-")[0], torch.float32)
