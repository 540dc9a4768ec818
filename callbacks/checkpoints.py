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
from cera.runs.journal import Journal, journal_path
from cera.training.step_loops import follow_steps


class Checkpoints(Callback):
    """Keeps the newest checkpoint, ``step=N.ckpt``; the previous one is deleted when the new one is complete.

    A checkpoint is written when its step is in the loggers, before the validation of the step, which may take long. Its
    journal (``cera.runs.journal``) says how much of the run's outputs is of that step and before, and whether the
    validation is. A run that resumes makes up for a validation that was left out, before its first step.

    On the first SIGINT or SIGTERM the state is saved after the current step and training ends; ``stopped_by`` holds
    the signal, from which the exit status follows. A second signal has its usual effect at once, and so has a signal
    before training, when there is nothing to save.

    When ``DivergenceGuard`` stops a run, the state after its last good step is saved, with the data positioned after
    the batch at which it diverged, so that a resumed run skips that batch. The previous checkpoint is kept as well:
    divergence often begins before it shows.

    Args:
        folder: Directory of the checkpoints.
        every_n_steps: Optimizer steps between checkpoints; 0 saves only at the end.
        resumed: Journal of the checkpoint that the run resumes from, ``None`` for a new run.
    """

    def __init__(self, folder: str | Path, every_n_steps: int, resumed: Journal | None = None) -> None:
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.resumed = resumed
        self.stopped_by: signal.Signals | None = None
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._last_step = -1
        self._loops: dict[str, Any] = {}
        self._validation_due = False
        self._saving = False
        self.started = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Follow the steps of the fit."""
        if stage == "fit":
            follow_steps(trainer, self, *self._left_out)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let SIGTERM end the process until training starts; Lightning's handler would ignore it."""
        self._previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL)}

    @property
    def _left_out(self) -> tuple[bool, bool]:
        """Whether the run that is resumed left out the validation of its last step, and the end of training."""
        if self.resumed is None:
            return False, False
        return not self.resumed.validated, not self.resumed.ended

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle SIGINT and SIGTERM during training."""
        self.started = True
        self._last_step = trainer.global_step
        self._validation_due = self._left_out[0]
        self._loops = trainer.fit_loop.state_dict()
        self._give_back_signals()
        self._previous = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        self._give_back_signals()
        print(f"\n{self._received.name}: finishing the step and saving; once more to stop at once.", flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loops' counters at the end of an optimizer step, from which Lightning resumes with the next one."""
        if trainer.global_step != self._last_step:
            self._loops = trainer.fit_loop.state_dict()

    def on_step_logged(self, trainer: Trainer, validation_due: bool) -> None:
        """Save at the end of an optimizer step that is due, the last one, or after which a rank received a signal."""
        if trainer.global_step == self._last_step:
            return  # within an accumulation
        self._last_step = trainer.global_step
        self._validation_due = validation_due
        stop = trainer.strategy.reduce_boolean_decision(self._received is not None, all=False)
        last = trainer.should_stop and trainer.fit_loop._can_stop_early
        if stop or last or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            self._save(trainer)
        if stop:
            self.stopped_by = self._received or signal.SIGTERM
            trainer.limit_val_batches = 0  # Lightning would validate before it stops
            trainer.should_stop = True
            rank_zero_info(f"Stopped at step {trainer.global_step}; continue with --ckpt_path last.")

    def on_step_done(self, trainer: Trainer) -> None:
        """Note that the validation of the newest checkpoint's step is done."""
        if self._validation_due and self.stopped_by is None:
            self._validation_due = False
            if self._path(trainer).exists():
                self._write_journal(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state."""
        self._give_back_signals()
        if not self._path(trainer).exists():
            self._save(trainer)

    def on_run_done(self, trainer: Trainer) -> None:
        """Note that the run has ended."""
        if self.stopped_by is None:
            self._write_journal(trainer, ended=True)
            self._remove_others(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the state before a divergence; restore the signal handlers."""
        if isinstance(exception, Diverged):
            exception.saved = self._save_diverged(trainer, pl_module)
        self._give_back_signals()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the counters from the end of the step: Lightning's have gone on since."""
        if self._saving:
            checkpoint["loops"]["fit_loop"] = self._loops

    def _save_diverged(self, trainer: Trainer, pl_module: Any) -> str:
        """Save the last good state; return a sentence on it and on how to continue. Called on every rank."""
        if trainer.global_step == 0:
            return "Nothing was trained yet, so there is no state to save."
        weights = (getattr(p, "ds_tensor", p).detach() for p in pl_module.trainable().values())  # ZeRO-3: a rank's part
        if not trainer.strategy.reduce_boolean_decision(all_finite(weights)):
            newest = newest_checkpoint(self.folder)
            return f"The weights are not finite either, and were not saved; the newest checkpoint is {newest}."
        self._validation_due = False  # it has diverged, too, or is done
        self._save(trainer, keep_others=True)
        path = self._path(trainer)
        return (
            f"The state after step {trainer.global_step} is in {path}; --ckpt_path last goes on from it, without the "
            "batch that came next. If it diverges again, start anew with a lower model.learning_rate."
        )

    def _path(self, trainer: Trainer) -> Path:
        return self.folder / f"step={trainer.global_step}.ckpt"

    def _save(self, trainer: Trainer, keep_others: bool = False) -> None:
        self._write_journal(trainer)  # before the checkpoint, which is not resumed without
        self._saving = True
        trainer.save_checkpoint(self._path(trainer), weights_only=False)
        self._saving = False
        trainer.strategy.barrier()
        if not keep_others:
            self._remove_others(trainer)

    def _write_journal(self, trainer: Trainer, ended: bool = False) -> None:
        for logger in trainer.loggers:
            logger.save()
        if trainer.is_global_zero:
            journal = Journal.take(Path(trainer.default_root_dir), not self._validation_due, ended)
            journal.save(self._path(trainer))

    def _remove_others(self, trainer: Trainer) -> None:
        path = self._path(trainer)
        if trainer.is_global_zero:
            for pattern in ("step=*.ckpt", "step=*.json", ".step=*.unfinished"):
                for other in self.folder.glob(pattern):
                    if other not in (path, journal_path(path)):
                        shutil.rmtree(other) if other.is_dir() else other.unlink()

    def _give_back_signals(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
