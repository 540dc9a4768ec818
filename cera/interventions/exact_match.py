"""The accuracy of an adapter on a task when its activation is replaced by a part of it, with paired tests.

An evaluation runs as ``cera evaluate`` runs it; its records are resumed in the same way.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel

from cera.evaluation.compare import EvaluationComparison, compare, read_results
from cera.evaluation.evaluate import Evaluation, PromptedProblem, evaluate, prepare
from cera.evaluation.generation import TransformersBackend
from cera.interventions.affine import LayerFit
from cera.interventions.replacement import intervened
from cera.interventions.scores import Condition

CONDITIONS = (Condition("whole"), Condition("affine", "full"), Condition("gain", "full"), Condition("none"))
"""What is evaluated."""


class TaskUnderInterventions:
    """The problems of a task, answered by an adapter and by the adapter under each of ``CONDITIONS``.

    The prompts are rendered, and earlier results held against the settings, before a model is loaded.

    Args:
        evaluation: The task and its settings.
        tokenizer: The base's tokenizer.
        folder: Directory of the results, which gets a directory for each condition.
        identity: What identifies the adapter and the data of the fit, as JSON values.
        config: The base's transformers configuration.

    Raises:
        RecordError: The directory holds results of something else.
        ValueError: The problems cannot be read, or a prompt is too long.
    """

    def __init__(
        self, evaluation: Evaluation, tokenizer: Any, folder: Path, identity: Mapping[str, Any], config: Any
    ) -> None:
        self.evaluation, self.tokenizer = evaluation, tokenizer
        self.folders = {condition: folder / condition.label.replace(" ", "_") for condition in CONDITIONS}
        self.identities = {condition: {**identity, "intervention": condition.label} for condition in CONDITIONS}
        self.prompted: dict[Condition, list[PromptedProblem]] = {
            condition: prepare(evaluation, tokenizer, self.folders[condition], self.identities[condition], config)
            for condition in CONDITIONS
        }

    def run(self, model: PeftModel, fits: Mapping[str, LayerFit], progress: bool = True) -> dict[str, dict[str, Any]]:
        """Answer what is not answered yet, and return the report of each condition by its label."""
        return {condition.label: self._evaluate(model, fits, condition, progress) for condition in CONDITIONS}

    def comparisons(self) -> dict[str, EvaluationComparison]:
        """Return each condition against the whole adapter, by label, after ``run``."""
        records = {condition: read_results(folder) for condition, folder in self.folders.items()}
        (report, whole), *_ = records.values()
        return {
            condition.label: compare(whole, answered, list(report["metrics"]))
            for condition, (_, answered) in records.items()
            if condition.part != "whole"
        }

    def _evaluate(
        self, model: PeftModel, fits: Mapping[str, LayerFit], condition: Condition, progress: bool
    ) -> dict[str, Any]:
        backend = TransformersBackend(model, self.tokenizer, self.evaluation.batch_size, progress=progress)
        with intervened(model, fits, condition.part, condition.level or "full"):
            return evaluate(
                self.evaluation,
                self.prompted[condition],
                lambda: backend,
                self.folders[condition],
                self.identities[condition],
            )
