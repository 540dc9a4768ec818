"""Lightning callbacks that measure a training run."""

import json
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile

from benchmarks.clock import StepClock
from benchmarks.operations import seconds_by_operation
from cera.callbacks import SpectralTracker
from cera.training.throughput import TrainingFlops


class LightningClock(Callback):
    """Runs the clock of the training contenders.

    Args:
        path: File for the measurements, written at the end of training.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.clock = StepClock()
        self._flops: TrainingFlops | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a step; each batch is one, since the benchmark does not accumulate gradients."""
        if self._flops is None:
            self._flops = TrainingFlops.from_model(pl_module.model)
        self.clock.begin(batch["n_tokens"], batch["tokens"].numel(), float(self._flops(batch)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the step, after the optimizer step and the callbacks before this one."""
        self.clock.end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the measurements."""
        self.clock.save(self.path)


class OperationClock(Callback):
    """Records the seconds per step in each kind of operation, without nested ones.

    Args:
        path: File for the measurements, written at the end of training: ``operations``, seconds by name, and
            ``seconds`` of the whole step, both with the profiler running.
        warmup: Number of steps before the profile starts.
    """

    def __init__(self, path: str, warmup: int = 2) -> None:
        self.path = path
        self.warmup = warmup
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the profiler after the warm-up."""
        if batch_idx == self.warmup:
            self._profile.start()
            self._start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the measurements."""
        steps = trainer.global_step - self.warmup
        seconds = (time.perf_counter() - self._start) / steps
        self._profile.stop()
        measured = {"operations": seconds_by_operation(self._profile, steps), "seconds": seconds}
        Path(self.path).write_text(json.dumps(measured))


class TrackerClock(Callback):
    """Records the seconds that ``SpectralTracker`` takes at each validation, and those of each training step.

    Args:
        path: File for the measurements, written at the end of training: ``tracking`` and ``steps``, lists of seconds,
            and ``logged``, the final ``spectra/cost`` logged by the tracker.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.tracking: list[float] = []
        self.steps: list[float] = []
        self._before = 0.0
        self._start = 0.0

    def _spent(self, trainer: Any) -> float:
        tracker = next(callback for callback in trainer.callbacks if isinstance(callback, SpectralTracker))
        return tracker.state_dict()["seconds"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the duration of the step."""
        self.steps.append(time.perf_counter() - self._start)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the tracker's time spent in earlier validations."""
        self._before = self._spent(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the tracker's time in this validation; the sanity check is not tracked."""
        if not trainer.sanity_checking:
            self.tracking.append(self._spent(trainer) - self._before)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the measurements."""
        logged = float(trainer.callback_metrics["spectra/cost"])
        Path(self.path).write_text(json.dumps({"tracking": self.tracking, "steps": self.steps, "logged": logged}))
