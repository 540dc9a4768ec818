"""Judges the values of an answer against the true trajectory of the logistic map (paper Table 2)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from cera.data.logistic_map import half_unit, logistic_map, tolerances, trajectory
from cera.evaluation.statistics import mean_interval

LARGEST_TOLERANCE = 0.05
"""Steps are judged up to this tolerance, in a range of [0, 1]; beyond it, rounding alone could make any value."""
SLACK = 1e-9
"""Allowance for the rounding of fp64 itself."""
COLLAPSE_LENGTH = 3
"""Number of equal values in a row that makes a collapse."""


@dataclass(frozen=True)
class TrajectoryScore:
    """How far an answer follows the true trajectory.

    Attributes:
        steps: Number of values that the question asks for.
        judged: Number of leading steps whose tolerance is small enough to judge them.
        stated: Number of values that the answer states, at most ``steps``.
        correct: Number of judged steps on the true trajectory before the first that is wrong or missing.
        consistent: Number of steps, of all ``steps``, that follow from the answer's own previous value, to rounding.
        collapsed: Whether a value is repeated three times in a row where neither the map nor the truth repeats it.
    """

    steps: int
    judged: int
    stated: int
    correct: int
    consistent: int
    collapsed: bool

    @property
    def all_right(self) -> bool:
        """Whether every judged step is right."""
        return self.correct == self.judged


def score(values: Sequence[float], r: float, x0: float, decimals: int, steps: int | None = None) -> TrajectoryScore:
    """Judge an answer against the true trajectory.

    A step is right if it is within ``tolerances`` of the truth, so honest rounding is never wrong. Steps are judged
    while the tolerance is at most ``LARGEST_TOLERANCE``.

    Args:
        values: The values that the answer states, from x_1 on.
        r: Growth rate.
        x0: Initial value.
        decimals: Decimal places that the question asks for.
        steps: Number of values that the question asks for; further ones do not count. ``None`` takes all of ``values``.
    """
    steps = len(values) if steps is None else steps
    stated = list(values[:steps])
    truth, bounds = trajectory(r, x0, steps), tolerances(r, x0, steps, decimals)
    judged = _leading(bound <= LARGEST_TOLERANCE for bound in bounds)
    near = [abs(value - x) <= bound + SLACK for value, x, bound in zip(stated, truth, bounds, strict=False)]
    return TrajectoryScore(
        steps=steps,
        judged=judged,
        stated=len(stated),
        correct=_leading(near[:judged]),
        consistent=sum(_follows(stated, r, x0, decimals)),
        collapsed=collapse(stated, r, x0, decimals) is not None,
    )


def collapse(values: Sequence[float], r: float, x0: float, decimals: int) -> tuple[int, int] | None:
    """Return the positions where the first collapse begins and ends, or ``None``.

    A collapse is a value that the answer repeats while the true trajectory moves. A value that the map itself repeats
    is a fixed point and no collapse.

    Args:
        values: The values that the answer states, from x_1 on.
        r: Growth rate.
        x0: Initial value.
        decimals: Decimal places that the question asks for.
    """
    truth, follows = trajectory(r, x0, len(values)), _follows(values, r, x0, decimals)
    start = 0
    for end in range(1, len(values) + 1):
        if end < len(values) and values[end] == values[start]:
            continue
        moved = max(truth[start:end]) - min(truth[start:end])
        if end - start >= COLLAPSE_LENGTH and not follows[start + 1] and moved > 2 * half_unit(decimals):
            return start, end
        start = end
    return None


def summarize(scores: Sequence[Sequence[TrajectoryScore]]) -> dict[str, dict[str, float]]:
    """Return means over problems with 95% intervals.

    Args:
        scores: For each problem, the scores of its samples, which are averaged.

    Returns:
        ``value``, ``low`` and ``high`` of ``steps_correct`` (in steps), ``correct`` (share of the judged steps),
        ``all_right``, ``consistent`` (share of the steps asked for) and ``collapse`` (shares of the problems).

    Raises:
        ValueError: There are no scores.
    """
    if not scores:
        raise ValueError("There must be at least one score.")
    longest = max(1, *(score.judged for samples in scores for score in samples))
    return {
        "steps_correct": _mean([fmean(s.correct / longest for s in samples) for samples in scores], longest),
        "correct": _mean([fmean(s.correct / max(1, s.judged) for s in samples) for samples in scores]),
        "all_right": _mean([fmean(s.all_right for s in samples) for samples in scores]),
        "consistent": _mean([fmean(s.consistent / max(1, s.steps) for s in samples) for samples in scores]),
        "collapse": _mean([fmean(s.collapsed for s in samples) for samples in scores]),
    }


def _mean(shares: Sequence[float], unit: float = 1.0) -> dict[str, float]:
    interval = mean_interval(shares)
    return {"value": fmean(shares) * unit, "low": interval.low * unit, "high": interval.high * unit}


def _leading(conditions: Iterable[bool]) -> int:
    """Return how many conditions hold before the first that does not."""
    count = 0
    for condition in conditions:
        if not condition:
            break
        count += 1
    return count


def _follows(values: Sequence[float], r: float, x0: float, decimals: int) -> list[bool]:
    """Return whether each value is the map of the previous one, to the rounding of both.

    The model may go on with the rounded value, as the question asks, or with the value before rounding.
    """
    previous = [x0, *values][: len(values)]
    half = half_unit(decimals)
    errors = [0.0] + [half] * (len(values) - 1)  # x0 is not rounded
    return [
        abs(value - logistic_map(r, x)) <= r * error * (abs(1 - 2 * x) + error) + half + SLACK
        for x, error, value in zip(previous, errors, values, strict=False)
    ]
