"""The logistic map as an evaluation task."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from cera.data import DataError
from cera.data.logistic_map import LogisticMapProblem, grid_problems, random_problems
from cera.evaluation.fields import RECORD, Field, check_fields, is_number
from cera.evaluation.records import Record
from cera.evaluation.tasks.logistic_map.parser import parse
from cera.evaluation.tasks.logistic_map.score import TrajectoryScore, score, summarize
from cera.evaluation.tasks.task import Problem, Score, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = 9
"""Number of problems whose trajectories are drawn."""

DETAILS = {
    "problem": Field(
        lambda value: (
            isinstance(value, dict)
            and value.keys() == {"r", "x0", "steps", "decimals"}
            and all(map(is_number, value.values()))
        ),
        "an object with the numbers r, x0, steps and decimals",
    ),
    "values": Field(lambda value: isinstance(value, list) and all(map(is_number, value)), "a list of numbers"),
    "score": Field(
        lambda value: (
            isinstance(value, dict)
            and value.keys() == {field.name for field in fields(TrajectoryScore)}
            and all(isinstance(count, int) and count >= 0 for count in value.values())
        ),
        f"an object with the counts {', '.join(field.name for field in fields(TrajectoryScore))}",
    ),
}
"""The fields of the details of a sample."""


def checked_details(record: Record) -> list[dict[str, Any]]:
    """Return the details of a record's samples.

    Raises:
        RecordError: They are missing, or of another task.
    """
    where = f"the record {record['key']!r}"
    check_fields(record, RECORD, ("details",), where)
    for details in record["details"]:
        check_fields(details, DETAILS, DETAILS.keys(), f"{where}: details")
    return list(record["details"])


@dataclass
class LogisticMap(Task):
    """Does a model iterate ``x_(n+1) = r x_n (1 - x_n)``, or does it fall into repeating a value (paper Table 2)?

    The model is asked for rounded values, so its trajectory may leave the true one without a mistake; ``tolerances``
    allows for that. An answer counts as right if all judged steps are.

    Args:
        size: Number of random problems.
        steps: Number of values that each problem asks for.
        decimals: Decimal places that values are rounded to.
        problem_seed: Seed of the random problems.
        r: Growth rates, and
        x0: initial values of a grid of problems in place of random ones. Both or neither must be given.
    """

    size: int = 50
    steps: int = 10
    decimals: int = 4
    problem_seed: int = 0
    r: list[float] | None = None
    x0: list[float] | None = None

    def check(self) -> None:
        """Raise ``DataError`` if a setting is out of its range."""
        super().check()
        self._trajectories()

    def all_problems(self) -> list[Problem]:
        """Return a problem for each trajectory; the gold answer is its worked steps."""
        return [
            Problem(problem.key, problem.question, problem.answer, details=asdict(problem))
            for problem in self._trajectories()
        ]

    def _trajectories(self) -> list[LogisticMapProblem]:
        if (self.r is None) != (self.x0 is None):
            raise DataError("LogisticMap: r and x0 must both be given, or neither.")
        try:
            if self.r is not None and self.x0 is not None:
                return grid_problems(self.r, self.x0, self.steps, self.decimals)
            return random_problems(self.size, self.problem_seed, self.steps, self.decimals)
        except ValueError as error:
            raise DataError(f"LogisticMap: {error}") from error

    def score(self, text: str, problem: Problem) -> Score:
        """Parse the stated values and judge them; the details of the record have the problem, the values and counts."""
        settings = LogisticMapProblem(**problem.details)
        values = parse(text, settings.x0)
        result = score(values, settings.r, settings.x0, settings.decimals, settings.steps)
        return Score(
            correct=result.all_right,
            answer=", ".join(map(str, values)) or None,
            extracted_by="steps" if values else None,
            details={"problem": problem.details, "values": values, "score": asdict(result)},
        )

    def summarize(self, records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
        """Return steps before the first error, and the shares of right and consistent steps and of collapses."""
        return summarize([[TrajectoryScore(**d["score"]) for d in checked_details(record)] for record in records])

    def figures(self, records: Sequence[dict[str, Any]]) -> "dict[str, Figure]":
        """Return ``trajectories``: the first sample of each of the first problems beside the truth."""
        from cera.evaluation.tasks.logistic_map.figure import trajectory_figure

        first = [checked_details(record)[0] for record in records[:PANELS]]
        return {"trajectories": trajectory_figure([(LogisticMapProblem(**d["problem"]), d["values"]) for d in first])}
