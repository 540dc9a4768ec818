"""GSM-Symbolic: problems of GSM8K with other names and numbers."""

from dataclasses import dataclass
from typing import Any, ClassVar

from cera.evaluation.tasks.task import Problem, text
from cera.evaluation.tasks.worked_solution import WorkedSolutionTask


@dataclass
class GSMSymbolic(WorkedSolutionTask):
    """apple/GSM-Symbolic (Mirzadeh et al. 2024): 100 templates of GSM8K with 50 sets of names and numbers each.

    The problems of one template resemble each other, while the intervals treat all problems as independent. The
    intervals are therefore narrower than they should be.

    Args:
        name: ``main``, or ``p1`` and ``p2`` with one and two additional clauses.
    """

    columns: ClassVar = (("question", "answer"),)
    path: str | None = "apple/GSM-Symbolic"
    name: str | None = "main"

    def problem(self, row: dict[str, Any], number: int) -> Problem:
        return Problem(f"gsm_symbolic/{number}", text(row, "question"), text(row, "answer"))
