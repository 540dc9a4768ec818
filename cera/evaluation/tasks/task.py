"""The base classes of evaluation tasks. A task has problems, and it scores the answers to them.

A new task is one file with one class, which a configuration names by its class path. It needs no change in cera::

    @dataclass
    class Capitals(RowsTask):
        columns: ClassVar = (("country", "capital"),)

        def problem(self, row: dict[str, Any], number: int) -> Problem:
            return Problem(f"capitals/{number}", f"What is the capital of {row['country']}?", row["capital"])

        def score(self, text: str, problem: Problem) -> Score:
            return Score(correct=problem.gold.casefold() in text.casefold())

A task whose problems do not come from a file or the hub derives from ``Task`` and has ``all_problems``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cera.data import DataError, Rows
from cera.data.rows import describe, shorten
from cera.evaluation.fields import is_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUBSET_SEED = 0
"""Seed of the choice of ``limit`` problems: every evaluation with the same limit uses the same ones."""


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        key: Its name, unique in the task.
        question: The question as the data set has it, without prompt or chat template.
        gold: The reference answer, or a solution that ends in it.
        groups: Groups under which it is also reported, such as ``{"level": "5", "subject": "Algebra"}``.
        details: Whatever else ``Task.score`` needs, such as the options of a multiple choice or the tests of a program.
    """

    key: str
    question: str
    gold: str
    groups: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """The verdict on one generated text.

    Attributes:
        correct: Whether the text is right, or a partial credit in [0, 1].
        answer: The final answer that was extracted from the text; ``None`` if there is none.
        extracted_by: The rule that extracted it, such as ``"boxed"``; counted in the report.
        details: Further JSON values for the record, which ``Task.summarize`` and ``Task.figures`` can read.

    Raises:
        ValueError: ``correct`` is neither a bool nor a float in [0, 1].
    """

    correct: bool | float
    answer: str | None = None
    extracted_by: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.correct, bool | float) or not 0 <= self.correct <= 1:
            raise ValueError(f"Score.correct must be a bool, or a float in [0, 1], got {self.correct!r}.")


@dataclass
class Task:
    """A set of problems and the rule that scores the answers to them.

    Subclasses are dataclasses, whose fields are the settings of the task; they are kept with the results. They define
    ``all_problems`` and ``score``, and may define ``check``, ``summarize`` and ``figures``.

    Args:
        limit: Evaluate only this many problems: a fixed random choice, in the order of the set. ``None`` takes all.
    """

    limit: int | None = None

    def all_problems(self) -> list[Problem]:
        """Return every problem of the set, in order.

        Raises:
            DataError: A problem is malformed. An evaluation skips nothing.
        """
        raise NotImplementedError

    def score(self, text: str, problem: Problem) -> Score:
        """Score one generated answer.

        Args:
            text: What the model wrote after the prompt.
            problem: The problem that it answers.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Raise ``DataError`` for mistakes that show without the network and without a model."""
        if self.limit is not None and self.limit < 1:
            raise DataError(f"task.limit must be at least 1, got {self.limit}.")

    def problems(self) -> list[Problem]:
        """Return the problems to evaluate: all of them, or ``limit``.

        Raises:
            DataError: There are none, one is malformed, or two have the same key.
        """
        problems = self.all_problems()
        if not problems:
            raise DataError(f"{type(self).__name__} has no problems.")
        for problem in problems:
            for name, value in (("key", problem.key), ("question", problem.question), ("gold", problem.gold)):
                if not isinstance(value, str):
                    raise DataError(
                        f"{type(self).__name__}: {name} of the problem {describe(problem.key)} must be a string, "
                        f"got {describe(value)}."
                    )
        if len({problem.key for problem in problems}) < len(problems):
            raise DataError(f"{type(self).__name__}: two problems have the same id.")
        return subset(problems, self.limit)

    def summarize(self, records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
        """Return metrics of this task's own, beside the share of right answers.

        Args:
            records: The finished records, one for each problem (``cera.evaluation.records.Record``).

        Returns:
            For each metric its ``value`` and the ends ``low`` and ``high`` of its 95% interval.
        """
        return {}

    def figures(self, records: Sequence[dict[str, Any]]) -> "dict[str, Figure]":
        """Return figures to save beside the records, by file name without ending.

        Args:
            records: As for ``summarize``.
        """
        return {}


@dataclass
class RowsTask(Task, Rows):
    """A task whose problems are the rows of local files or of a data set on the hub; see ``cera.data.Rows``.

    Subclasses define ``columns``, ``problem`` and ``score``.
    """

    split: str = "test"

    def problem(self, row: dict[str, Any], number: int) -> Problem:
        """Return row ``number`` as a problem. An exception means that the row is malformed."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ``DataError`` for a wrong limit, missing or empty files, and wrong columns."""
        Task.check(self)
        Rows.check(self)

    def all_problems(self) -> list[Problem]:
        """Return all rows as problems, in order; see ``Task.all_problems``."""
        problems = []
        for number, raw in enumerate(self.load(streaming=False)):
            try:
                row = self.row(raw)
                if row is not None:
                    problems.append(self.problem(row, number))
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
                raise DataError(f"{type(self).__name__}: row {number} is malformed: {shorten(repr(error))}.") from error
        return problems


def text(row: dict[str, Any], column: str) -> str:
    """Return the text in a column; a number stands for its text.

    Raises:
        ValueError: The column holds something else, or half a surrogate pair, which no tokenizer encodes.
        KeyError: The row does not have the column.
    """
    value = row[column]
    if is_number(value):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{column} must be text, got {describe(value)}")
    value.encode()
    return value


def subset(problems: list[Any], limit: int | None) -> list[Any]:
    """Return a fixed random choice of ``limit`` items in their order, or all of them if there are no more."""
    if limit is None or limit >= len(problems):
        return problems
    chosen = np.random.default_rng(SUBSET_SEED).permutation(len(problems))[:limit]
    return [problems[i] for i in sorted(chosen)]
