"""SIGINT and SIGTERM: finish the step, save, leave."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info


class GracefulStop(Callback):
    """On the first SIGINT or SIGTERM, saves a checkpoint after the current step and ends training.

    A second signal takes its usual effect at once. ``stopped_by`` then tells the program how to exit.

    Args:
        checkpoint_dir: Where the checkpoint goes, as ``step=N.ckpt``.
    """

    def __init__(self, checkpoint_dir: str | Path) -> None:
        self.checkpoint_dir = Path(checkpoint_dir)
        self.stopped_by: signal.Signals | None = None
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._checked_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the two signals for the time of training."""
        self._previous = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        self._restore()
        print(f"\n{self._received.name}: finishing the step and saving; once more to stop at once.", flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop, at the end of an optimizer step, if any rank got a signal."""
        if trainer.global_step == self._checked_step or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._checked_step = trainer.global_step
        if not trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            return
        self.stopped_by = self._received or signal.SIGTERM
        trainer.save_checkpoint(self.checkpoint_dir / f"step={trainer.global_step}.ckpt")
        trainer.should_stop = True
        rank_zero_info(f"Stopped at step {trainer.global_step}; continue with --ckpt_path last.")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
