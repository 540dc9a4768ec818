"""The evaluation tasks: each has its problems and scores the answers to them; ``task`` says how to add one."""

from cera.evaluation.tasks.chats import Chats
from cera.evaluation.tasks.gsm8k import GSM8K
from cera.evaluation.tasks.gsm_symbolic import GSMSymbolic
from cera.evaluation.tasks.logistic_map import LogisticMap
from cera.evaluation.tasks.math import MATH, MATH500
from cera.evaluation.tasks.task import Problem, RowsTask, Score, Task, subset
from cera.evaluation.tasks.worked_solution import WorkedSolutionTask

__all__ = [
    "GSM8K",
    "MATH",
    "MATH500",
    "Chats",
    "GSMSymbolic",
    "LogisticMap",
    "Problem",
    "RowsTask",
    "Score",
    "Task",
    "WorkedSolutionTask",
    "subset",
]
