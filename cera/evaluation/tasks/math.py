"""MATH and MATH-500: competition problems by level and subject."""

from dataclasses import dataclass
from typing import Any, ClassVar

from cera.evaluation.tasks.task import Problem, text
from cera.evaluation.tasks.worked_solution import WorkedSolutionTask

COLUMNS = {"answer", "solution", "level", "subject", "type", "unique_id"}
"""The columns beside ``problem`` that a row may have."""


@dataclass
class MATH(WorkedSolutionTask):
    """MATH (Hendrycks et al. 2021): 5,000 test problems with level and subject.

    A row has ``problem``, and either a ``solution`` with a boxed answer or a bare ``answer``; it may have ``level`` and
    ``subject`` (``type`` on the hub), under which its problem is reported.
    """

    columns: ClassVar = (("problem", "solution"), ("problem", "answer"))
    path: str | None = "DigitalLearningGmbH/MATH-lighteval"

    def problem(self, row: dict[str, Any], number: int) -> Problem:
        given = {column: text(row, column) for column in row.keys() & COLUMNS if row[column] not in (None, "")}
        subject, level = given.get("subject") or given.get("type"), given.get("level", "").removeprefix("Level ")
        groups = {name: value for name, value in (("level", level), ("subject", subject)) if value}
        gold = given.get("answer") or given.get("solution") or ""  # two training problems have neither: never right
        return Problem(given.get("unique_id") or f"math/{number}", text(row, "problem"), gold, groups)


@dataclass
class MATH500(MATH):
    """HuggingFaceH4/MATH-500: the 500 test problems of Lightman et al. (2023).

    Files with ``question`` and ``answer`` (a solution that ends in ``The answer is: X``) are accepted as well.
    """

    columns: ClassVar = (("problem", "answer"), ("question", "answer"))
    path: str | None = "HuggingFaceH4/MATH-500"

    def problem(self, row: dict[str, Any], number: int) -> Problem:
        return super().problem({**row, "problem": row["problem" if row.get("problem") else "question"]}, number)
