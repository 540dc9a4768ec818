"""Any chat dataset of the training side as a task."""

from dataclasses import dataclass, field
from typing import ClassVar

from cera.data import ChatDataset, DataError
from cera.evaluation.tasks.task import Problem, Task
from cera.evaluation.tasks.worked_solution import WorkedSolutionTask


@dataclass
class Chats(WorkedSolutionTask):
    """A ``cera.data.ChatDataset`` of mathematical questions and answers as a task.

    Conversations of exactly one user and one assistant turn are its problems; others are left out.

    Args:
        dataset: The dataset, such as ``cera.data.ReasoningGymWordProblems``, which generates its problems.
    """

    columns: ClassVar = ()
    dataset: ChatDataset = field(default_factory=ChatDataset)

    def check(self) -> None:
        """Raise ``DataError`` for a wrong limit, for files or a path of its own, and for what the dataset refuses."""
        Task.check(self)
        if self.files() or self.path:
            raise DataError("Chats: give data_files and path to its dataset.")
        self.dataset.check()

    def all_problems(self) -> list[Problem]:
        """Return the conversations as problems; see ``Task.all_problems``."""
        problems = []
        for number, raw in enumerate(self.dataset.load(streaming=False)):
            try:
                messages = self.dataset.parse(raw) or []
            except ValueError as error:
                raise DataError(f"{type(self.dataset).__name__}: row {number} is malformed: {error}.") from error
            if [message["role"] for message in messages] == ["user", "assistant"]:
                problems.append(Problem(f"chats/{number}", messages[0]["content"], messages[1]["content"]))
        if not problems:
            raise DataError(f"{type(self.dataset).__name__} has no conversation of one question and one answer.")
        return problems
