"""The benchmarks: a problem's question, its answer, and the groups that it is reported under. One small class a set."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from cera.data import ChatDataset, DataError, Rows

SUBSET_SEED = 0
"""Seed of the problems that ``limit`` takes: every evaluation with the same limit asks the same ones."""


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        key: Its name, unique in the task.
        question: As the set has it.
        gold: The set's answer, or a solution that ends in it.
        groups: What else it is reported under, such as ``{"level": "Level 5", "subject": "Algebra"}``.
    """

    key: str
    question: str
    gold: str
    groups: dict[str, str] = field(default_factory=dict)


@dataclass
class Task(Rows):
    """A set of problems: a local file, or one of the hub.

    Args:
        limit: Ask that many of them: a fixed random choice, in the set's order. ``None`` asks all.
    """

    split: str = "test"
    limit: int | None = None

    def problem(self, row: dict[str, Any], number: int) -> Problem:
        """Row ``number`` as a problem."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ``DataError`` for what can be told without the network."""
        self._check_limit()
        super().check()

    def _check_limit(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise DataError(f"task.limit must be at least 1, got {self.limit}.")

    def problems(self) -> list[Problem]:
        """All problems, in the set's order.

        Raises:
            DataError: A row is malformed, or two have the same key. An evaluation skips nothing.
        """
        found = []
        for number, raw in enumerate(self.load(streaming=False)):
            try:
                row = self.row(raw)
                if row is not None:
                    found.append(self.problem(row, number))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{type(self).__name__}: row {number} is malformed: {error!r}.") from error
        if len({problem.key for problem in found}) < len(found):
            raise DataError(f"{type(self).__name__}: two rows have the same id.")
        return subset(found, self.limit)


def subset(problems: list[Problem], limit: int | None) -> list[Problem]:
    """A fixed random choice of ``limit`` problems, in their order; all, where there are no more."""
    if limit is None or limit >= len(problems):
        return problems
    chosen = np.random.default_rng(SUBSET_SEED).permutation(len(problems))[:limit]
    return [problems[i] for i in sorted(chosen)]


@dataclass
class GSM8K(Task):
    """openai/gsm8k (Cobbe et al. 2021), 1,319 test problems: ``question``, and an ``answer`` that ends ``#### N``."""

    columns: ClassVar = (("question", "answer"),)
    path: str | None = "openai/gsm8k"
    name: str | None = "main"

    def problem(self, row: dict[str, Any], number: int) -> Problem:
        return Problem(f"gsm8k/{number}", row["question"], row["answer"])


@dataclass
class MATH(Task):
    """MATH, 5,000 test problems with level and subject (Hendrycks et al. 2021).

    ``problem`` with a ``solution`` whose answer is boxed, or with the bare ``answer``; ``level``; ``subject`` or, on
    the hub, ``type``.
    """

    columns: ClassVar = (("problem", "solution"), ("problem", "answer"))
    path: str | None = "DigitalLearningGmbH/MATH-lighteval"

    def problem(self, row: dict[str, Any], number: int) -> Problem:
        subject = row.get("subject") or row.get("type")
        level = str(row.get("level") or "").removeprefix("Level ")
        groups = {name: str(value) for name, value in (("level", level), ("subject", subject)) if value}
        key = str(row.get("unique_id") or f"math/{number}")
        gold = row.get("answer") or row.get("solution") or ""  # two training problems have neither: never right
        return Problem(key, row["problem"], gold, groups)


@dataclass
class MATH500(MATH):
    """HuggingFaceH4/MATH-500, the 500 test problems of Lightman et al. (2023).

    Files with ``question`` and ``answer`` (a solution that ends in ``The answer is: X``) are read, too.
    """

    columns: ClassVar = (("problem", "answer"), ("question", "answer"))
    path: str | None = "HuggingFaceH4/MATH-500"

    def problem(self, row: dict[str, Any], number: int) -> Problem:
        return super().problem({**row, "problem": row.get("problem") or row["question"]}, number)


@dataclass
class GSMSymbolic(Task):
    """apple/GSM-Symbolic: 100 templates of GSM8K with 50 sets of names and numbers each (Mirzadeh et al. 2024).

    The problems of a template are alike, and intervals, which take problems for independent, narrower than they should
    be.

    Args:
        name: ``main``, or ``p1`` and ``p2`` with one and two clauses more.
    """

    columns: ClassVar = (("question", "answer"),)
    path: str | None = "apple/GSM-Symbolic"
    name: str | None = "main"

    def problem(self, row: dict[str, Any], number: int) -> Problem:
        return Problem(f"gsm_symbolic/{number}", row["question"], row["answer"])


@dataclass
class Chats(Task):
    """Any ``cera.data.ChatDataset`` of questions and answers as a task: its last user and assistant turns.

    Args:
        dataset: Such as ``cera.data.GSMSymbolic``, which makes its problems on the spot.
    """

    columns: ClassVar = ()
    dataset: ChatDataset = field(default_factory=ChatDataset)

    def check(self) -> None:
        """As of the dataset."""
        if self.files() or self.path:
            raise DataError("Chats: give data_files and path to its dataset.")
        self._check_limit()
        self.dataset.check()

    def problems(self) -> list[Problem]:
        """The conversations that end in a question and its answer."""
        found = []
        for number, raw in enumerate(self.dataset.load(streaming=False)):
            try:
                messages = self.dataset.parse(raw) or []
            except ValueError as error:
                raise DataError(f"{type(self.dataset).__name__}: row {number} is malformed: {error}.") from error
            if [message["role"] for message in messages] == ["user", "assistant"]:
                found.append(Problem(f"chats/{number}", messages[0]["content"], messages[1]["content"]))
        if not found:
            raise DataError(f"{type(self.dataset).__name__} has no conversation of one question and one answer.")
        return subset(found, self.limit)
