"""The parts that all benchmarks share: interleaved contenders, ratios with their spread, saved results.

seconds = interleaved({"ours": timed(ours), "theirs": timed(theirs)}, rounds=5)
row = RatioRow("time of ours / theirs", ratios(seconds["ours"], seconds["theirs"]), Goal("<=", 1.0))
print(ratio_table([Result("example", [row], "bfloat16")]))
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from cera.cli.tables import table
from cera.progress import StatusBar
from cera.runs.environment import environment as runs_environment
from cera.runs.files import replacing

RESULTS = Path(__file__).parent / "results"
T = TypeVar("T")


# Results


@dataclass(frozen=True)
class Goal:
    """A bound on a ratio, such as "at most 1.0".

    Args:
        sense: Side of ``bound`` on which the ratio should be.
        bound: The bound.
    """

    sense: Literal["<=", ">="]
    bound: float

    def reached(self, ratio: float) -> bool:
        """Return whether ``ratio`` is within the bound."""
        return ratio <= self.bound if self.sense == "<=" else ratio >= self.bound

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}"


@dataclass(frozen=True)
class RatioRow:
    """One row of the table: a ratio, measured once per round.

    Args:
        what: Description of the ratio: a quantity of one contender / another.
        ratios: One ratio per round.
        goal: Bound for the median; ``None`` for a ratio that is reported without a goal.

    Raises:
        ValueError: ``ratios`` is empty.
    """

    what: str
    ratios: Sequence[float]
    goal: Goal | None = None

    def __post_init__(self) -> None:
        if not self.ratios:
            raise ValueError(f"row {self.what!r} must have a ratio, got none.")

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """Minimum and maximum over the rounds."""
        return min(self.ratios), max(self.ratios)

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the goal; ``None`` without one."""
        return None if self.goal is None else self.goal.reached(self.median)


@dataclass(frozen=True)
class Result:
    """The result of one benchmark.

    Args:
        name: Name of the benchmark.
        rows: Its rows of the table.
        dtype: Data type of the computation.
        details: Data that explain the ratios (settings, times, bytes), in JSON types.
    """

    name: str
    rows: Sequence[RatioRow]
    dtype: str
    details: dict[str, Any] = field(default_factory=dict)


def ratio_table(results: Sequence[Result]) -> str:
    """Format the rows of all results as one Markdown table."""
    cells = []
    for row in (row for result in results for row in result.rows):
        low, high = row.spread
        spread = f"{_short(low)} to {_short(high)}, n={len(row.ratios)}" if len(row.ratios) > 1 else "n=1"
        reached = {None: "", True: "yes", False: "no"}[row.reached]
        cells.append([row.what, f"{_short(row.median)} ({spread})", str(row.goal or ""), reached])
    return table(cells, ["what", "measured ratio (spread)", "goal", "reached"], style="markdown", verbatim=())


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"


def save(result: Result, quick: bool, folder: Path = RESULTS) -> Path:
    """Write a result and the environment to ``result_file``, and return the path."""
    rows = [
        {**asdict(row), "goal": str(row.goal or ""), "median": row.median, "spread": row.spread, "reached": row.reached}
        for row in result.rows
    ]
    content = {**asdict(result), "rows": rows, "quick": quick, "environment": environment()}
    path = result_file(result.name, quick, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write_text(json.dumps(content, indent=1) + "\n")
    return path


def result_file(name: str, quick: bool, folder: Path) -> Path:
    """Return the file of a benchmark's result: ``NAME.json``, or ``NAME.quick.json``."""
    return folder / f"{name}{'.quick' if quick else ''}.json"


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
    """Return the values that each contender returns, one per round.

    The contenders take turns (A B A B), so that a slow minute affects all of them. Standard error
    shows their progress.

    Args:
        contenders: Measuring functions by name.
        rounds: Number of calls of each.

    Raises:
        ValueError: ``rounds`` is less than 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}.")
    measured: dict[str, list[T]] = {name: [] for name in contenders}
    StatusBar.monitor_interval = 0  # no thread beside what is timed
    with StatusBar(None, "", "run", total=rounds * len(contenders), miniters=1) as bar:
        for _ in range(rounds):
            for name, contender in contenders.items():
                bar.set_description(name)
                measured[name].append(contender())
                bar.update()
    return measured


def timed(
    function: Callable[[], Any], at_least: float = 0.0, wait: Callable[[], Any] | None = None
) -> Callable[[], float]:
    """Return a contender that measures the seconds that one call of ``function`` takes.

    Args:
        function: Called at least once.
        at_least: Minimum duration in seconds; calls are repeated for that long, and their mean is taken.
        wait: Waits for a device that works on after a call, such as ``torch.cuda.synchronize``. It is called before the
            clock starts and after each call.
    """
    wait = wait or (lambda: None)

    def measure() -> float:
        wait()
        calls, start = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - start < at_least:
            function()
            wait()
            calls += 1
        return (time.perf_counter() - start) / calls

    return measure


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Return ``numerator / denominator`` round by round; raise ``ValueError`` if their lengths differ."""
    return [n / d for n, d in zip(numerator, denominator, strict=True)]
