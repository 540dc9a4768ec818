"""The logistic map ``x_(n+1) = r x_n (1 - x_n)``: problems to pose, true trajectories, and tolerances for rounding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LONGEST = 10_000
"""Maximum number of steps of a trajectory."""

RATES, STARTS = range(250, 401), range(5, 96)
"""Growth rates and initial values of random problems, in hundredths."""


@dataclass(frozen=True)
class LogisticMapProblem:
    """A trajectory to compute.

    Args:
        r: Growth rate, in [2.5, 4].
        x0: Initial value, in (0, 1).
        steps: Number of values to compute, at most ``LONGEST``.
        decimals: Decimal places that each value is rounded to, 2 to 12.

    Raises:
        ValueError: A number is out of its range.
    """

    r: float
    x0: float
    steps: int = 10
    decimals: int = 4

    def __post_init__(self) -> None:
        if not 2.5 <= self.r <= 4:
            raise ValueError(f"r must be in [2.5, 4], got {self.r}.")
        if not 0 < self.x0 < 1:
            raise ValueError(f"x0 must be in (0, 1), got {self.x0}.")
        if not 1 <= self.steps <= LONGEST:
            raise ValueError(f"steps must be in [1, {LONGEST}], got {self.steps}.")
        if not 2 <= self.decimals <= 12:
            raise ValueError(f"decimals must be in [2, 12], got {self.decimals}.")

    @property
    def key(self) -> str:
        """The name of the problem among problems of the same steps and decimals."""
        return f"r={self.r}, x0={self.x0}"

    @property
    def question(self) -> str:
        """The question in words."""
        return (
            f"The logistic map is x_(n+1) = r * x_n * (1 - x_n). With r = {self.r} and x_0 = {self.x0}, compute the "
            f"next {self.steps} values. Round each to {self.decimals} decimal places and continue with the rounded "
            f"value. Write each step on its own line, such as:\nx_1 = {0.5:.{self.decimals}f}"
        )

    @property
    def answer(self) -> str:
        """The worked steps, rounded as the question asks."""
        lines, x = [], f"{self.x0}"
        for step in range(1, self.steps + 1):
            value = f"{logistic_map(self.r, float(x)):.{self.decimals}f}"
            lines.append(f"x_{step} = {self.r} * {x} * (1 - {x}) = {value}")
            x = value
        return "\n".join(lines)


def logistic_map(r: float, x: float) -> float:
    """Return ``r x (1 - x)``."""
    return r * x * (1 - x)


def trajectory(r: float, x0: float, steps: int) -> list[float]:
    """Return the true values x_1 ... x_steps, computed in fp64.

    Args:
        r: Growth rate.
        x0: Initial value; not in the result.
        steps: Number of values.
    """
    values, x = [], x0
    for _ in range(steps):
        x = logistic_map(r, x)
        values.append(x)
    return values


def half_unit(decimals: int) -> float:
    """Return the largest error of rounding to ``decimals`` places."""
    return 0.5 * 10.0**-decimals


def tolerances(r: float, x0: float, steps: int, decimals: int) -> list[float]:
    """Return how far each step may be from the truth if rounding to ``decimals`` places is the only error.

    An error e before a step is at most ``r e (|1 - 2x| + e)`` after it, as ``f(x + e) - f(x) = r e (1 - 2x - e)``;
    rounding the step adds half a unit of the last place. Where the map is chaotic the bound grows exponentially.

    Args:
        r: Growth rate.
        x0: Initial value.
        steps: Number of values.
        decimals: Decimal places.

    Returns:
        A bound for each of x_1 ... x_steps, at most 1, since all values are in [0, 1].
    """
    bounds, error = [], 0.0
    for x in [x0, *trajectory(r, x0, steps)][:-1]:
        error = min(1.0, r * error * (abs(1 - 2 * x) + error) + half_unit(decimals))
        bounds.append(error)
    return bounds


def grid_problems(
    rs: Sequence[float], x0s: Sequence[float], steps: int = 10, decimals: int = 4
) -> list[LogisticMapProblem]:
    """Return a problem for each r and each x0.

    Raises:
        ValueError: A number is out of the range that ``LogisticMapProblem`` gives.
    """
    return [LogisticMapProblem(r, x0, steps, decimals) for r in rs for x0 in x0s]


def random_problems(count: int, seed: int = 0, steps: int = 10, decimals: int = 4) -> list[LogisticMapProblem]:
    """Return distinct problems with r in [2.5, 4] and x0 in [0.05, 0.95], both with two decimals.

    Args:
        count: Number of problems, at most 13,741, which is all of them.
        seed: Seed of the choice.
        steps: See ``LogisticMapProblem``.
        decimals: See ``LogisticMapProblem``.

    Raises:
        ValueError: A number is out of its range.
    """
    if not 1 <= count <= len(RATES) * len(STARTS):
        raise ValueError(f"The number of problems must be in [1, {len(RATES) * len(STARTS)}], got {count}.")
    chosen = np.random.default_rng(seed).choice(len(RATES) * len(STARTS), size=count, replace=False)
    indices = (divmod(int(number), len(STARTS)) for number in chosen)
    return [LogisticMapProblem(RATES[i] / 100, STARTS[j] / 100, steps, decimals) for i, j in indices]


def training_rows(problems: Sequence[LogisticMapProblem]) -> list[dict[str, str]]:
    """Return the problems as training data with the columns ``question`` and ``answer``."""
    return [{"question": problem.question, "answer": problem.answer} for problem in problems]


def problems_but(held_out: int, seed: int, steps: int, decimals: int, chosen: bool = False) -> list[LogisticMapProblem]:
    """Return all problems of ``random_problems`` but the first choice of ``held_out``, in random order.

    Args:
        held_out: Number of problems that ``random_problems`` chooses with seed 0 for evaluation.
        seed: Seed of the order.
        steps: See ``LogisticMapProblem``.
        decimals: See ``LogisticMapProblem``.
        chosen: Return the problems for evaluation instead, in their own order.

    Raises:
        ValueError: A number is out of its range.
    """
    evaluated = random_problems(held_out, 0, steps, decimals)
    if chosen:
        return evaluated
    keys = {problem.key for problem in evaluated}
    everything = random_problems(len(RATES) * len(STARTS), 0, steps, decimals)
    others = [problem for problem in everything if problem.key not in keys]
    return [others[i] for i in np.random.default_rng(seed).permutation(len(others))]
