"""Saves a run at regular intervals, at its end, and when a signal asks it to stop."""

import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from cera.callbacks.divergence_guard import Diverged, all_finite
from cera.runs.checkpoints import newest_checkpoint


class Checkpoints(Callback):
    """Keeps the newest checkpoint, ``step=N.ckpt``; the previous one is deleted when the new one is complete.

    On the first SIGINT or SIGTERM the state is saved after the current step and training ends; ``stopped_by`` holds
    the signal, from which the exit status follows. A second signal has its usual effect at once, and so has a signal
    before training, when there is nothing to save.

    When ``DivergenceGuard`` stops a run, the state after its last good step is saved, with the data positioned after
    the batch at which it diverged, so that a resumed run skips that batch. The previous checkpoint is kept as well:
    divergence often begins before it shows.

    Args:
        folder: Directory of the checkpoints.
        every_n_steps: Optimizer steps between checkpoints; 0 saves only at the end.
    """

    def __init__(self, folder: str | Path, every_n_steps: int) -> None:
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.stopped_by: signal.Signals | None = None
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._last_step = -1
        self._loops: dict[str, Any] = {}
        self._diverged = False
        self.started = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let SIGTERM end the process until training starts; Lightning's handler would ignore it."""
        self._previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle SIGINT and SIGTERM during training."""
        self.started = True
        self._last_step = trainer.global_step
        self._loops, self._diverged = trainer.fit_loop.state_dict(), False
        self._give_back_signals()
        self._previous = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        self._give_back_signals()
        print(f"\n{self._received.name}: finishing the step and saving; once more to stop at once.", flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the end of an optimizer step that is due, or after which a rank has received a signal."""
        if trainer.global_step == self._last_step:
            return  # within an accumulation
        self._last_step = trainer.global_step
        self._loops = trainer.fit_loop.state_dict()
        stop = trainer.strategy.reduce_boolean_decision(self._received is not None, all=False)
        if stop or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            self._save(trainer)
        if stop:
            self.stopped_by = self._received or signal.SIGTERM
            trainer.limit_val_batches = 0  # Lightning would validate before it stops
            trainer.should_stop = True
            rank_zero_info(f"Stopped at step {trainer.global_step}; continue with --ckpt_path last.")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state."""
        self._give_back_signals()
        if not self._path(trainer).exists():
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the state before a divergence; restore the signal handlers."""
        if isinstance(exception, Diverged):
            exception.saved = self._save_diverged(trainer, pl_module)
        self._give_back_signals()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """After a divergence, store the counters from before the step: Lightning's stand in the middle of it."""
        if self._diverged:
            checkpoint["loops"]["fit_loop"] = self._loops

    def _save_diverged(self, trainer: Trainer, pl_module: Any) -> str:
        """Save the last good state; return a sentence on it and on how to continue. Called on every rank."""
        if trainer.global_step == 0:
            return "Nothing was trained yet, so there is no state to save."
        weights = (getattr(p, "ds_tensor", p).detach() for p in pl_module.trainable().values())  # ZeRO-3: a rank's part
        if not trainer.strategy.reduce_boolean_decision(all_finite(weights)):
            newest = newest_checkpoint(self.folder)
            return f"The weights are not finite either, and were not saved; the newest checkpoint is {newest}."
        self._diverged = True
        self._save(trainer, keep_others=True)
        path = self._path(trainer)
        return (
            f"The state after step {trainer.global_step} is in {path}; --ckpt_path last goes on from it, without the "
            "batch that came next. If it diverges again, start anew with a lower model.learning_rate."
        )

    def _path(self, trainer: Trainer) -> Path:
        return self.folder / f"step={trainer.global_step}.ckpt"

    def _save(self, trainer: Trainer, keep_others: bool = False) -> None:
        path = self._path(trainer)
        trainer.save_checkpoint(path, weights_only=False)
        trainer.strategy.barrier()
        if trainer.is_global_zero and not keep_others:
            for other in (*self.folder.glob("step=*.ckpt"), *self.folder.glob(".step=*.ckpt.unfinished")):
                if other != path:
                    shutil.rmtree(other) if other.is_dir() else other.unlink()

    def _give_back_signals(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
