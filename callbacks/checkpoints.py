"""Saves a run at regular intervals, at its end, and when a signal asks it to stop."""

import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cera.callbacks.divergence_guard import Diverged, all_finite
from cera.runs.checkpoints import newest_checkpoint
from cera.runs.journal import RUN, VALIDATION, Journal, journal_path
from cera.runs.signals import Stopped, poll, stop_signals
from cera.training.step_loops import StepHooks, install_loops


class Checkpoints(Callback, StepHooks):
    """Keeps the newest checkpoint, ``step=N.ckpt``; the previous one is deleted when the new one is complete.

    A checkpoint is written when its step is in the loggers, before the validation of the step, which may take long. Its
    journal (``cera.runs.journal``) holds how much of the run's outputs is of that step and before, and what of the step
    came after the checkpoint. A run that resumes repeats that first.

    After the first SIGINT or SIGTERM the state is saved at the end of the step, or at once in a validation, and
    ``cera.runs.signals.Stopped`` is raised. A second signal ends the process at once.

    When ``DivergenceGuard`` stops a run, the state after its last good step is saved, with the data positioned after
    the batch at which it diverged, so that a resumed run skips that batch. The previous checkpoint is kept as well:
    divergence often begins before it shows.

    Args:
        folder: Directory of the checkpoints.
        every_n_steps: Optimizer steps between checkpoints; 0 saves only at the end.
        resumed: Journal of the checkpoint in ``folder`` that the run resumes from, ``None`` for a new run.
    """

    def __init__(self, folder: str | Path, every_n_steps: int, resumed: Journal | None = None) -> None:
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.resumed = resumed
        self.started = False
        self._received: signal.Signals | None = None
        self._signals = ExitStack()
        self._last_step = -1
        self._saved_step = -1
        self._left_out: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Follow the steps of the fit."""
        if stage == "fit":
            self._loop = install_loops(trainer)
            self._loop.follow(self, self.resumed.left_out if self.resumed is not None else ())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle SIGINT and SIGTERM during training."""
        self.started = True
        self._last_step = trainer.global_step
        if self.resumed is not None:
            self._saved_step, self._left_out = trainer.global_step, set(self.resumed.left_out)
        self._received = None
        self._signals.close()
        self._signals.enter_context(stop_signals(self._receive))

    def _receive(self, number: signal.Signals) -> None:
        self._received = number
        text = f"\n{number.name}: stopping as soon as the step is saved; once more to stop at once.\n"
        os.write(2, text.encode())  # a print may have been interrupted, and cannot be entered again

    def on_step_logged(self, trainer: Trainer, to_do: set[str]) -> None:
        """Save at the end of an optimizer step that is due, the last one, or after which a rank received a signal."""
        if trainer.global_step == self._last_step:
            return  # within an accumulation
        self._last_step, self._left_out = trainer.global_step, to_do
        self._stop_if_asked(trainer)
        if self._loop.stops_early or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            self._save(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop in the validation of a step, which the resumed run repeats, if a rank received a signal."""
        if VALIDATION in self._left_out:  # which it is not in a validation within an accumulation
            self._stop_if_asked(trainer)

    def on_part_done(self, trainer: Trainer, part: str) -> None:
        """Stop after a part of the step if a rank received a signal; note the end of the run."""
        if part not in self._left_out:
            return
        self._left_out.discard(part)
        if part == RUN:
            self._write_journal(trainer)
            self._remove_others(trainer)
        else:
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state."""
        self._stop_if_asked(trainer)
        self._signals.close()
        if self._saved_step != trainer.global_step:
            self._save(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        """Save, and raise ``Stopped``, if a rank received a signal. Every rank must call this."""
        poll()  # a run that shares its process with others does not handle signals itself
        if not trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            return
        step = trainer.global_step
        if step > 0 and self._saved_step != step:
            self._save(trainer)
        outcome = f"stopped at step {step}, which is saved; continue with --ckpt_path last."
        raise Stopped(self._received or signal.SIGTERM, outcome if step else "stopped before the first step.")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the state before a divergence; restore the signal handlers."""
        if isinstance(exception, Diverged):
            exception.saved = self._save_diverged(trainer, pl_module)
        self._signals.close()

    def _save_diverged(self, trainer: Trainer, pl_module: Any) -> str:
        """Save the last good state; return a sentence on it and on how to continue. Called on every rank."""
        if trainer.global_step == 0:
            return "Nothing was trained yet, so there is no state to save."
        weights = (getattr(p, "ds_tensor", p).detach() for p in pl_module.trainable().values())  # ZeRO-3: a rank's part
        if not trainer.strategy.reduce_boolean_decision(all_finite(weights)):
            newest = newest_checkpoint(self.folder)
            return f"The weights are not finite either, and were not saved; the newest checkpoint is {newest}."
        self._left_out.discard(VALIDATION)  # one that diverged is not repeated
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
        trainer.save_checkpoint(self._path(trainer), weights_only=False)
        self._saved_step = trainer.global_step
        trainer.strategy.barrier()
        if not keep_others:
            self._remove_others(trainer)

    def _write_journal(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()
        if trainer.is_global_zero:
            Journal.take(Path(trainer.default_root_dir), self._left_out).save(self._path(trainer))

    def _remove_others(self, trainer: Trainer) -> None:
        path = self._path(trainer)
        if trainer.is_global_zero:
            for pattern in ("step=*.ckpt", "step=*.json", ".step=*.unfinished"):
                for other in self.folder.glob(pattern):
                    if other not in (path, journal_path(path)):
                        shutil.rmtree(other) if other.is_dir() else other.unlink()
