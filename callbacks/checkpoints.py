"""When a run is saved: every so many steps, at the end, and when it is asked to stop."""

import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info


class Checkpoints(Callback):
    """Keeps the newest checkpoint, ``step=N.ckpt``; the one before goes when the newer one is complete.

    On the first SIGINT or SIGTERM training is saved after the current step and ends; ``stopped_by`` then tells the
    program how to exit. A second signal takes its usual effect at once, as does one before training, when there is
    nothing to save.

    Args:
        folder: Where checkpoints are kept.
        every: Optimizer steps between checkpoints; 0 saves only at the end.
    """

    def __init__(self, folder: str | Path, every: int) -> None:
        self.folder = Path(folder)
        self.every = every
        self.stopped_by: signal.Signals | None = None
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._last_step = -1
        self.started = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Until training starts a SIGTERM ends the process; Lightning's own handler would pass over it."""
        self._previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the two signals for the time of training."""
        self.started = True
        self._last_step = trainer.global_step
        self._give_back_signals()
        self._previous = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        self._give_back_signals()
        print(f"\n{self._received.name}: finishing the step and saving; once more to stop at once.", flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, at the end of an optimizer step, if it is time or any rank got a signal."""
        if trainer.global_step == self._last_step:
            return  # in the middle of accumulation
        self._last_step = trainer.global_step
        stop = trainer.strategy.reduce_boolean_decision(self._received is not None, all=False)
        if stop or (self.every and trainer.global_step % self.every == 0):
            self._save(trainer)
        if stop:
            self.stopped_by = self._received or signal.SIGTERM
            trainer.limit_val_batches = 0  # a stop would validate once more, and who asks to stop does not wait
            trainer.should_stop = True
            rank_zero_info(f"Stopped at step {trainer.global_step}; continue with --ckpt_path last.")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what training ended with."""
        self._give_back_signals()
        if not self._path(trainer).exists():
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._give_back_signals()

    def _path(self, trainer: Trainer) -> Path:
        return self.folder / f"step={trainer.global_step}.ckpt"

    def _save(self, trainer: Trainer) -> None:
        path = self._path(trainer)
        trainer.save_checkpoint(path, weights_only=False)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            for other in (*self.folder.glob("step=*.ckpt"), *self.folder.glob(".step=*.ckpt.unfinished")):
                if other != path:
                    shutil.rmtree(other) if other.is_dir() else other.unlink()

    def _give_back_signals(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
