"""Keeps Lightning's count of micro-batches in step with the stream's, whatever cuts an epoch or a run short.

Lightning makes an optimizer step when its count of an epoch's micro-batches is a multiple of
``trainer.accumulate_grad_batches``; the stream gives each step that many. Both agree if epochs and resumed runs begin
at the same step of the stream.
"""

import math
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler


def check_whole_steps(trainer: Trainer) -> None:
    """Raise ``ValueError`` if an epoch would end within an optimizer step, or change how many micro-batches one has."""
    limit, accumulate = trainer.limit_train_batches, trainer.accumulate_grad_batches
    if isinstance(limit, int) and limit % accumulate:
        whole = f"{limit - limit % accumulate} or " if limit > accumulate else ""
        raise ValueError(
            f"trainer.limit_train_batches must be a multiple of trainer.accumulate_grad_batches={accumulate}, so that "
            f"an epoch ends with a whole step, got {limit}. Use {whole}{limit + accumulate - limit % accumulate}."
        )
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            "trainer.callbacks must not have GradientAccumulationScheduler: the batches of all epochs are made for "
            "one trainer.accumulate_grad_batches. Set that instead."
        )


def total_steps(trainer: Trainer) -> int:
    """Return the number of optimizer steps of the whole run."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    return count_steps(trainer, trainer.datamodule.steps_per_epoch())  # type: ignore[attr-defined]


def count_steps(trainer: Trainer, steps: int) -> int:
    """Return the number of optimizer steps in ``trainer.max_epochs`` epochs.

    With ``trainer.limit_train_batches`` an epoch of the trainer is a part of an epoch of the data: each goes on where
    the one before was cut, and what is left at the end of the data is an epoch, too.

    Args:
        trainer: The trainer.
        steps: Optimizer steps in which the data are seen once.
    """
    limit, epochs = trainer.limit_train_batches, trainer.max_epochs
    assert epochs is not None
    if not isinstance(limit, int):
        return steps * epochs
    per_epoch = min(steps, limit // trainer.accumulate_grad_batches)
    passes, rest = divmod(epochs, math.ceil(steps / per_epoch))
    return passes * steps + rest * per_epoch


def rescale(fit_loop: dict[str, Any], before: int, now: int) -> None:
    """Change the counts of micro-batches in a checkpoint's ``fit_loop`` to another number of them in a step.

    Args:
        fit_loop: The state of the loop, after a whole step.
        before: ``accumulate_grad_batches`` of the run that wrote it.
        now: That of the run that resumes.
    """
    progress = fit_loop["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        added = counts["ready"] // before * now - counts["ready"]
        for name in counts:  # "completed" may be one behind "ready", as the checkpoint is written before it is counted
            counts[name] += added
