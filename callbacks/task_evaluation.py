"""Asks a task at the end of ``train.py test``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cera.evaluation.evaluate import Evaluation, evaluate, table
from cera.evaluation.generation import TransformersBackend
from cera.evaluation.tasks import Problem


class TaskEvaluation(Callback):
    """Evaluates the tested model, while it is still where it was tested, and prints the table.

    Args:
        evaluation: What to ask.
        asked: As ``cera.evaluation.evaluate.prepare`` returns it.
        folder: Of the results.
        model: What is evaluated, as plain data.
    """

    def __init__(
        self, evaluation: Evaluation, asked: Sequence[tuple[Problem, str]], folder: Path, model: dict[str, Any]
    ) -> None:
        self.evaluation = evaluation
        self.asked = asked
        self.folder = folder
        self.model = model

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule | Any) -> None:
        """Ask; each rank its share."""
        report = evaluate(
            self.evaluation,
            self.asked,
            lambda: TransformersBackend(pl_module.model, pl_module.tokenizer, self.evaluation.batch_size),
            self.folder,
            self.model,
            trainer.global_rank,
            trainer.world_size,
        )
        if trainer.is_global_zero:
            print(f"\n{table(report)}\n\nrecords and eval.json: {self.folder}")
