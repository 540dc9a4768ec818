"""Lightning's loops, which call a callback between a step's log and its validation, and resume there.

Lightning logs a step after the last hook that it calls for it, and goes on to the validation at once. A checkpoint that
a callback writes in a hook therefore precedes outputs of its own step, and Lightning never makes them again.
"""

from collections.abc import Collection
from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.fit_loop import RestartStage, _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer import call

from cera.runs.journal import EPOCH, RUN, VALIDATION


class StepHooks:
    """What is called on every rank when a part of a step is done."""

    def on_step_logged(self, trainer: Trainer, to_do: set[str]) -> None:
        """A micro-batch is in the loggers; ``to_do`` comes next, with ``RUN`` for the end of the run."""

    def on_part_done(self, trainer: Trainer, part: str) -> None:
        """The validation, the end of the epoch or the end of the run is done, if it was to do."""


def install_loops(trainer: Trainer) -> "FitLoop":
    """Let ``trainer`` use the loops of this module, and return the outer one. More than once is as once."""
    fit_loop: Any = trainer.fit_loop
    fit_loop.__class__, fit_loop.epoch_loop.__class__ = FitLoop, StepLoop  # Lightning makes its loops itself
    return fit_loop


class WholeSteps(Callback):
    """Gives checkpoints the loops' counters of the end of the last whole step, whichever callback writes them.

    Weights and the position of the data are those of then, also within an accumulation, a validation, or the end of an
    epoch. Lightning resumes from these counters with the next step.
    """

    def __init__(self) -> None:
        self._step = -1
        self._counters: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the loops, which resume at the end of an epoch, too."""
        install_loops(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the fit begins."""
        self._step = -1
        self._note(trainer)

    def on_train_batch_end(self, trainer: Trainer, *details: Any) -> None:
        """Note the end of a step."""
        self._note(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Replace Lightning's counters, which have gone on since."""
        self._note(trainer)  # for a callback that comes first and saves in on_train_batch_end
        checkpoint["loops"]["fit_loop"] = self._counters

    def _note(self, trainer: Trainer) -> None:
        if trainer.global_step != self._step:
            self._step, self._counters = trainer.global_step, trainer.fit_loop.state_dict()


class StepLoop(_TrainingEpochLoop):
    """The loop over the micro-batches of an epoch."""

    hooks = StepHooks()

    def on_advance_end(self, data_fetcher: Any) -> None:
        """Validate if it is due."""
        to_do = {RUN}
        if self._should_check_val_fx(data_fetcher):
            to_do.add(VALIDATION)
        if self._is_training_done or cast(FitLoop, self.trainer.fit_loop).stops_early:
            to_do.add(EPOCH)
        self.hooks.on_step_logged(self.trainer, to_do)
        super().on_advance_end(data_fetcher)
        self.hooks.on_part_done(self.trainer, VALIDATION)

    def reset(self) -> None:
        """Prepare for an epoch. Lightning counts on if it resumes at the end of one whose length it did not know."""
        new_epoch = self.restarting and self.batch_progress.is_last_batch
        super().reset()
        if new_epoch:
            self.batch_progress.reset_on_run()
            self.scheduler_progress.reset_on_run()
            self.automatic_optimization.optim_progress.reset_on_run()
            self.val_loop.batch_progress.total.reset()

    def validate(self) -> None:
        """Validate outside of a step."""
        self.trainer.validating = True
        call._call_lightning_module_hook(self.trainer, "on_validation_model_zero_grad")
        self.val_loop.restarting = False
        self.val_loop.run()
        self.trainer.training = True


class FitLoop(_FitLoop):
    """The loop over epochs."""

    epoch_loop: StepLoop
    hooks = StepHooks()
    left_out: Collection[str] = ()

    def follow(self, hooks: StepHooks, left_out: Collection[str]) -> None:
        """Call ``hooks`` in the fit that comes next, and first do what the checkpoint that it resumes from left out."""
        self.hooks = self.epoch_loop.hooks = hooks
        self.left_out = left_out

    @property
    def skip(self) -> bool:
        """Whether nothing is left to do."""
        progress: Any = self.epoch_progress.current
        last_epoch = self.max_epochs not in (None, -1) and progress.processed + 1 >= self.max_epochs
        at_the_end = self.epoch_loop.restarting and self.epoch_loop.batch_progress.is_last_batch and last_epoch
        return (super().skip or at_the_end) and not self.left_out

    @property
    def stops_early(self) -> bool:
        """Whether something has asked the trainer to stop, and it may."""
        return self.trainer.should_stop and self._can_stop_early

    def reset(self) -> None:
        """Prepare to run; Lightning begins the next epoch here if it resumes at the end of one."""
        progress: Any = self.epoch_progress.current
        epoch = progress.processed
        super().reset()
        self._epochs_ended = progress.processed - epoch
        if self._epochs_ended:
            self._restart_stage = RestartStage.NONE  # Lightning would pass over the hooks of its start

    def on_run_start(self) -> None:
        """Run the hooks of the start, then what was left out of the step that is resumed from."""
        super().on_run_start()
        if not {VALIDATION, EPOCH}.intersection(self.left_out):
            return
        self._count_epochs(-self._epochs_ended)  # what was left out belongs to the epoch of its step
        if VALIDATION in self.left_out:
            self.epoch_loop.validate()
            self.hooks.on_part_done(self.trainer, VALIDATION)
        if EPOCH in self.left_out or self.stops_early:  # as a callback of the validation may ask
            self.epoch_loop._batches_that_stepped += 1  # as it is after a validation
            self.on_advance_end()
            self.epoch_loop._batches_that_stepped -= 1
        else:
            self._count_epochs(self._epochs_ended)

    def _count_epochs(self, number: int) -> None:
        progress: Any = self.epoch_progress
        for counts in (progress.total, progress.current):
            counts.processed += number
            counts.completed += number

    def on_advance_end(self) -> None:
        """Run the hooks of the end of an epoch."""
        super().on_advance_end()
        self.hooks.on_part_done(self.trainer, EPOCH)

    def on_run_end(self) -> None:
        """Run the hooks of the end."""
        super().on_run_end()
        self.hooks.on_part_done(self.trainer, RUN)
