"""Evaluates a task at the end of ``train.py test``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cera.evaluation.evaluate import Evaluation, PromptedProblem, evaluate
from cera.evaluation.generation import TransformersBackend

FormatReport = Callable[[dict[str, Any]], str]
"""Formats the report of an evaluation as text."""


class TaskEvaluation(Callback):
    """Evaluates the tested model on a task, while it is still on its device, and prints the report.

    Args:
        evaluation: The settings of the evaluation.
        prompted: The result of ``cera.evaluation.evaluate.prepare``.
        folder: Directory for the results.
        model: Description of the model, as JSON values.
        format_report: Formats the report that is printed.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        prompted: Sequence[PromptedProblem],
        folder: Path,
        model: dict[str, Any],
        format_report: FormatReport,
    ) -> None:
        self.evaluation = evaluation
        self.prompted = prompted
        self.folder = folder
        self.model = model
        self.format_report = format_report

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule | Any) -> None:
        """Evaluate the task; each rank takes its share of the problems."""
        report = evaluate(
            self.evaluation,
            self.prompted,
            lambda: TransformersBackend(
                pl_module.model, pl_module.tokenizer, self.evaluation.batch_size, progress=trainer.is_global_zero
            ),
            self.folder,
            self.model,
            trainer.global_rank,
            trainer.world_size,
        )
        if trainer.is_global_zero:
            print(f"\n{self.format_report(report)}\n\nrecords and eval.json: {self.folder}")
