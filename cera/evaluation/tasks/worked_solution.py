"""The base class of mathematical tasks, whose answers are worked solutions with a final answer."""

from dataclasses import dataclass

from cera.evaluation import answers
from cera.evaluation.tasks.task import Problem, RowsTask, Score


@dataclass
class WorkedSolutionTask(RowsTask):
    """A task whose gold answers are worked solutions or bare final answers, compared by ``cera.evaluation.answers``."""

    def score(self, text: str, problem: Problem) -> Score:
        """Extract the final answer of ``text`` and compare it with that of the gold solution, as values."""
        verdict = answers.judge(text, problem.gold)
        return Score(verdict.correct, verdict.answer, verdict.extracted_by)
