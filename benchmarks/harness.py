"""What benchmarks share: contenders that take turns, ratios with their spread, saved results."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from cera.runs.environment import environment as runs_environment
from cera.runs.files import replacing

RESULTS = Path(__file__).parent / "results"
T = TypeVar("T")


# Results


@dataclass(frozen=True)
class Goal:
    """A bound on a ratio, such as "at most 1.0".

    Args:
        sense: On which side of ``bound`` the ratio should be.
        bound: The ratio.
    """

    sense: Literal["<=", ">="]
    bound: float

    def reached(self, ratio: float) -> bool:
        """Whether ``ratio`` is on the right side."""
        return ratio <= self.bound if self.sense == "<=" else ratio >= self.bound

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}"


@dataclass(frozen=True)
class Row:
    """One line of the table: a ratio, measured once a round.

    Args:
        what: What is compared with what.
        ratios: One a round.
        goal: What the median should be; ``None`` for a ratio that is told for information.

    Raises:
        ValueError: There is no ratio.
    """

    what: str
    ratios: Sequence[float]
    goal: Goal | None = None

    def __post_init__(self) -> None:
        if not self.ratios:
            raise ValueError(f"row {self.what!r} must have a ratio at least, got none.")

    @property
    def median(self) -> float:
        """Over the rounds."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest of the rounds."""
        return min(self.ratios), max(self.ratios)

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the goal; ``None`` without one."""
        return None if self.goal is None else self.goal.reached(self.median)


@dataclass(frozen=True)
class Result:
    """What a benchmark found.

    Args:
        name: Of the benchmark.
        rows: Its lines of the table.
        dtype: Of the computation.
        details: Whatever explains the ratios (settings, times, bytes), as JSON takes it.
    """

    name: str
    rows: Sequence[Row]
    dtype: str
    details: dict[str, Any] = field(default_factory=dict)


def table(results: Sequence[Result]) -> str:
    """One Markdown table of all results."""
    lines = ["| what | measured ratio (spread) | goal | reached |", "| --- | --- | --- | --- |"]
    for row in (row for result in results for row in result.rows):
        low, high = row.spread
        spread = f"{_short(low)} to {_short(high)}, n={len(row.ratios)}" if len(row.ratios) > 1 else "n=1"
        reached = {None: "", True: "yes", False: "no"}[row.reached]
        lines.append(f"| {row.what} | {_short(row.median)} ({spread}) | {row.goal or ''} | {reached} |")
    return "\n".join(lines)


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"


def save(result: Result, quick: bool, folder: Path = RESULTS) -> Path:
    """Write a result with the environment to ``NAME.json``; a quick one to ``NAME.quick.json``, beside the full one.

    Returns:
        The file.
    """
    rows = [
        {**asdict(row), "goal": str(row.goal or ""), "median": row.median, "spread": row.spread, "reached": row.reached}
        for row in result.rows
    ]
    content = {**asdict(result), "rows": rows, "quick": quick, "environment": environment()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}{'.quick' if quick else ''}.json"
    with replacing(path) as file:
        file.write_text(json.dumps(content, indent=1) + "\n")
    return path


def environment() -> dict[str, Any]:
    """Return the environment record under the keys of the saved results: ``versions`` and ``git_revision``."""
    record = runs_environment()
    software = ("python", "packages", "commit", "command")
    return {
        **{key: value for key, value in record.items() if key not in software},
        "versions": {"python": record["python"], **record["packages"]},
        "git_revision": record["commit"],
    }


# Measuring


def interleaved(contenders: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each contender returns in each round; they take turns (A B A B), so a slow minute hits all of them.

    Args:
        contenders: Functions that measure, by name.
        rounds: How often each is called.

    Raises:
        ValueError: ``rounds`` is less than 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}.")
    measured: dict[str, list[T]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            measured[name].append(contender())
    return measured


def timed(function: Callable[[], Any], at_least: float = 0.0) -> Callable[[], float]:
    """A contender that measures the seconds that a call of ``function`` takes.

    Args:
        function: What is called, once at least.
        at_least: Seconds that it is called again and again for; the mean over the calls is taken.
    """

    def measure() -> float:
        calls, start = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - start < at_least:
            function()
            calls += 1
        return (time.perf_counter() - start) / calls

    return measure


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Round by round, ``numerator`` in units of ``denominator``. Raises ``ValueError`` for different lengths."""
    return [n / d for n, d in zip(numerator, denominator, strict=True)]
