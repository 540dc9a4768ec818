"""Callbacks that measure a run of ``train.py`` from within."""

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


class LightningClock(Callback):
    """Sets the clock of the training contenders.

    Args:
        path: Where the measurements go at the end of training.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.clock = StepClock()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Each batch is a step: the benchmark does not accumulate."""
        self.clock.begin(batch["n_tokens"], batch["tokens"].numel())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The optimizer has made the step, and the callbacks before this one have logged it."""
        self.clock.end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self.clock.save(self.path)


class OperationClock(Callback):
    """Notes the seconds of a step in each kind of operation, those within it left out.

    Args:
        path: Where the measurements go at the end of training: ``operations``, seconds by name, and ``seconds``, of
            the whole step, both with the profiler at work.
        warmup: Steps that are not looked at.
    """

    def __init__(self, path: str, warmup: int = 2) -> None:
        self.path = path
        self.warmup = warmup
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """After the warm-up, begin."""
        if batch_idx == self.warmup:
            self._profile.start()
            self._start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        steps = trainer.global_step - self.warmup
        seconds = (time.perf_counter() - self._start) / steps
        self._profile.stop()
        found = {"operations": seconds_by_operation(self._profile, steps), "seconds": seconds}
        Path(self.path).write_text(json.dumps(found))


class TrackerClock(Callback):
    """Notes the seconds that ``SpectralTracker`` takes at each validation, and that each training step takes.

    Args:
        path: Where the measurements go at the end of training: ``tracking`` and ``steps``, lists of seconds, and
            ``logged``, the tracker's own ``spectra/cost`` at the end.
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
        """A step is made."""
        self.steps.append(time.perf_counter() - self._start)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What was spent up to here belongs to earlier validations."""
        self._before = self._spent(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What was spent since belongs to this one; the base alone, before the first step, is not tracked."""
        if not trainer.sanity_checking:
            self.tracking.append(self._spent(trainer) - self._before)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        logged = float(trainer.callback_metrics["spectra/cost"])
        Path(self.path).write_text(json.dumps({"tracking": self.tracking, "steps": self.steps, "logged": logged}))
