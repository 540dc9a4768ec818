"""The logistic map (paper Table 2): problems, a parser of answers, their score, a figure, and the task."""

from cera.data.logistic_map import (
    LogisticMapProblem,
    grid_problems,
    random_problems,
    tolerances,
    training_rows,
    trajectory,
)
from cera.evaluation.tasks.logistic_map.parser import parse
from cera.evaluation.tasks.logistic_map.score import TrajectoryScore, score, summarize
from cera.evaluation.tasks.logistic_map.task import LogisticMap

__all__ = [
    "LogisticMap",
    "LogisticMapProblem",
    "TrajectoryScore",
    "grid_problems",
    "parse",
    "random_problems",
    "score",
    "summarize",
    "tolerances",
    "training_rows",
    "trajectory",
]
