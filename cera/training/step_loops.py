"""Lightning's loops, with a moment between a step's log and its validation, and with validations that were left out.

Lightning logs a step after the last hook that it calls for it, and goes on to the validation at once. A checkpoint that
a callback writes in a hook therefore precedes outputs of its own step, and Lightning never makes them again.
"""

from typing import Any, Protocol

from lightning import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer import call


class StepHooks(Protocol):
    """What is called around the validation of a step and at the end of a run, on every rank."""

    def on_step_logged(self, trainer: Trainer, validation_due: bool) -> None:
        """A micro-batch is in the loggers, and its validation, if any is due, comes next."""

    def on_step_done(self, trainer: Trainer) -> None:
        """The validation of a step is in the loggers, or none was due or allowed."""

    def on_run_done(self, trainer: Trainer) -> None:
        """All hooks at the end of training have run."""


def follow_steps(trainer: Trainer, hooks: StepHooks, validate_first: bool = False, end_again: bool = False) -> None:
    """Let ``trainer`` call ``hooks`` in the fit that comes next.

    Args:
        trainer: The trainer.
        hooks: What is called.
        validate_first: Whether the fit, which resumes, validates before its first step.
        end_again: Whether a fit that has no step left runs the hooks of its start and its end all the same.
    """
    fit_loop: Any = trainer.fit_loop
    fit_loop.__class__, fit_loop.epoch_loop.__class__ = FitLoop, StepLoop  # Lightning makes its loops itself
    fit_loop.hooks = fit_loop.epoch_loop.hooks = hooks
    fit_loop.validate_first, fit_loop.end_again = validate_first, end_again


class StepLoop(_TrainingEpochLoop):
    """The loop over the micro-batches of an epoch."""

    hooks: StepHooks

    def on_advance_end(self, data_fetcher: Any) -> None:
        """Validate if it is due."""
        self.hooks.on_step_logged(self.trainer, self._should_check_val_fx(data_fetcher))
        super().on_advance_end(data_fetcher)
        self.hooks.on_step_done(self.trainer)

    def validate(self) -> None:
        """Validate outside of a step."""
        self.trainer.validating = True
        call._call_lightning_module_hook(self.trainer, "on_validation_model_zero_grad")
        self.val_loop.restarting = False
        self.val_loop.run()
        self.trainer.training = True


class FitLoop(_FitLoop):
    """The loop over epochs."""

    hooks: StepHooks
    epoch_loop: StepLoop
    validate_first: bool
    end_again: bool

    @property
    def skip(self) -> bool:
        """Whether there is nothing to do."""
        return super().skip and not self.end_again

    def reset(self) -> None:
        """Prepare to run; Lightning begins the next epoch here if the checkpoint is of the end of one."""
        progress: Any = self.epoch_progress.current
        epoch = progress.processed
        super().reset()
        self._epochs_begun = progress.processed - epoch

    def on_run_start(self) -> None:
        """Run the hooks of the start, and the validation that was left out."""
        super().on_run_start()
        if self.validate_first:
            self.validate_first = False
            progress: Any = self.epoch_progress.current
            progress.processed -= self._epochs_begun  # the validation belongs to the epoch of its step
            self.epoch_loop.validate()
            progress.processed += self._epochs_begun
            self.hooks.on_step_done(self.trainer)

    def on_run_end(self) -> None:
        """Run the hooks of the end."""
        super().on_run_end()
        self.hooks.on_run_done(self.trainer)
