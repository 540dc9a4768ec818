"""GSM8K: word problems of grade school."""

from dataclasses import dataclass
from typing import Any, ClassVar

from cera.evaluation.tasks.task import Problem, text
from cera.evaluation.tasks.worked_solution import WorkedSolutionTask


@dataclass
class GSM8K(WorkedSolutionTask):
    """openai/gsm8k (Cobbe et al. 2021): 1,319 test problems, whose ``answer`` ends in ``#### N``."""

    columns: ClassVar = (("question", "answer"),)
    path: str | None = "openai/gsm8k"
    name: str | None = "main"

    def problem(self, row: dict[str, Any], number: int) -> Problem:
        return Problem(f"gsm8k/{number}", text(row, "question"), text(row, "answer"))
