"""How far the runs of a study are, read from their run directories and one small record for each.

The record, ``study/NAME.json`` beside the run directories, holds what a run directory does not: what the run was
started with, how long its processes took, and why it failed. It is whole or absent (``cera.runs.files``), so that the
state is right after a kill at any moment.
"""

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from cera.foreign_files import FileError, read_json_object
from cera.runs.files import replacing
from cera.runs.finished import FinishedRun, RunError
from cera.runs.lock import in_use
from cera.studies.axes import StudyError, argument
from cera.studies.base_measurement import BASE_VALIDATION
from cera.studies.definition import REPLICATES, StudyRun
from cera.studies.early_stopping import StoppedEarly
from cera.studies.measures import Measure

RECORDS = "study"
"""The folder of records and logs in the directory of a study."""

State = Literal[
    "finished", "running", "stopped", "stopped early", "diverged", "failed", "not begun", "undecided", "not needed"
]
ENDED = ("finished", "diverged", "stopped early")
"""States of runs that are not started again."""

NOT_WANTED = ("undecided", "not needed")
"""States of runs that a search of the best value does not start, or does not yet (``cera.studies.search``)."""


@dataclass
class RunRecord:
    """What is known of a run beside its directory.

    Attributes:
        started_with: Names of its files and its settings.
        seconds: How long its processes took so far.
        failure: Why the last one failed; ``None`` if it did not.
    """

    started_with: dict[str, Any]
    seconds: float = 0.0
    failure: str | None = None

    @classmethod
    def read(cls, folder: Path, run: StudyRun) -> "RunRecord | None":
        """Return the record of a run of the study in ``folder``; ``None`` if it was never started.

        Raises:
            StudyError: The run was started with other files or settings than the study has now.
        """
        path = record_path(folder, run.name)
        if not path.exists():
            return None
        content = read_json_object(path)
        try:
            record = cls(**content)
            record.seconds = float(record.seconds)
            before = dict(record.started_with)
        except (TypeError, ValueError) as error:
            raise FileError(f"{path} is no record of a run.") from error
        now = started_with(run)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise StudyError(
                    f"{folder / run.name} was started with {key}={before.get(key)}, and the study has {now.get(key)} "
                    "now: give the study another name, or remove the run and its record."
                )
        return record

    def save(self, folder: Path, run: StudyRun) -> None:
        """Write the record."""
        path = record_path(folder, run.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write_text(json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Attributes:
        run: The run.
        state: A ``failed`` or ``stopped`` run is resumed when the study is run again.
        step: Number of optimizer steps done.
        max_steps: Number of optimizer steps of the whole run, if it is known.
        reason: Why it failed, diverged or was stopped early.
        perplexity: Perplexity at its last validation.
        seconds: How long its processes took so far.
    """

    run: StudyRun
    state: State
    step: int = 0
    max_steps: int | None = None
    reason: str | None = None
    perplexity: float | None = None
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """Share of the run's steps that are done, in [0, 1]."""
        if self.state in ("finished", "diverged"):
            return 1.0
        return min(self.step / self.max_steps, 1.0) if self.max_steps else 0.0


def read_state(folder: Path, run: StudyRun, measures: Sequence[Measure]) -> RunState:
    """Return how far a run of the study in ``folder`` is; what is wrong with its files makes it a failed one.

    Raises:
        StudyError: The run was started with other settings than the study has now.
    """
    record = RunRecord.read(folder, run)
    seconds, failure = (record.seconds, record.failure) if record else (0.0, None)
    path = folder / run.name
    try:
        finished_run = FinishedRun.read(path)
    except RunError:
        state: State = "running" if in_use(path) else "failed" if failure else "not begun"
        return RunState(run, state, reason=failure if state == "failed" else None, seconds=seconds)
    step, validations, divergence, early = 0, {}, None, None
    try:
        validations, divergence = finished_run.curve("val/perplexity"), finished_run.divergence
        step = max([0, *finished_run.curve("train/loss"), *validations])
        trained = finished_run.trained
        ended = trained and next_measure(finished_run, measures) is None
        early = None if trained else StoppedEarly.read(path)
    except FileError as error:
        ended, failure = False, str(error)
    if divergence:
        state, failure = "diverged", divergence
    elif ended:
        state, failure = "finished", None
    elif early is not None:
        state, failure = "stopped early", str(early)
    elif in_use(path):
        state, failure = "running", None
    else:
        state = "failed" if failure else "stopped"
    max_steps = (finished_run.config.get("trainer") or {}).get("max_steps")
    last = validations[max(validations)] if validations else None
    return RunState(run, state, step, max_steps if (max_steps or -1) > 0 else None, failure, last, seconds)


def next_measure(run: FinishedRun, measures: Sequence[Measure]) -> Measure | None:
    """Return the first measure that takes a command and has no values yet."""
    return next((m for m in measures if not m.values(run) and m.command(run.path) is not None), None)


def started_with(run: StudyRun) -> dict[str, Any]:
    """Return what a run is started with, for comparison: the names of its files, and its settings as arguments.

    Whether it measures the base is left out: another run may be the first of its method when an axis gets more values.
    """
    settings = {key: argument(value) for key, value in run.settings.items() if key != BASE_VALIDATION}
    return {"configs": [Path(path).name for path in run.configs], **settings}


def record_path(folder: Path, name: str) -> Path:
    """Return the path of a run's record in the directory of a study."""
    return folder / RECORDS / f"{name}.json"


def expected_seconds(states: Sequence[RunState]) -> dict[str, float]:
    """Return an estimate of how long each run takes as a whole, by name; empty if no run has come far enough to tell.

    A run is taken to last as long as those of its method that have ended did on average; if there are none, as long as
    all that have ended; and before any has, as long as the runs so far.

    Args:
        states: Of all runs.
    """
    known = [state for state in states if state.seconds > 0 and state.share > 0]
    ended = [state for state in known if state.state == "finished"]
    if not known:
        return {}
    average = statistics.fmean(state.seconds / state.share for state in ended or known)
    by_method: dict[str, list[float]] = {}
    for state in ended:
        by_method.setdefault(state.run.method, []).append(state.seconds)
    return {state.run.name: statistics.fmean(by_method.get(state.run.method, [average])) for state in states}


def run_seconds_left(states: Sequence[RunState]) -> dict[str, float]:
    """Return an estimate of the seconds that each run still takes, by name; see ``expected_seconds``.

    Runs that have ended, failed or are not needed are left out. Of undecided ones, that differ in the selected axis
    alone, one will be run, so that each counts with its share.
    """
    lengths = expected_seconds(states)
    undecided = Counter(_replicate(state) for state in states if state.state == "undecided")
    left = [state for state in states if state.state not in (*ENDED, "failed", "not needed")]
    shares = [1 / undecided[_replicate(state)] if state.state == "undecided" else 1 - state.share for state in left]
    return {s.run.name: lengths[s.run.name] * share for s, share in zip(left, shares, strict=True)} if lengths else {}


def _replicate(state: RunState) -> tuple[str, str | None]:
    return state.run.method, state.run.labels.get(REPLICATES)


def seconds_left(states: Sequence[RunState], parallel: int) -> float | None:
    """Return an estimate of the seconds until all runs have ended, or failed; see ``expected_seconds``.

    Args:
        states: Of all runs.
        parallel: Number of runs at a time.

    Returns:
        ``None`` if no run has come far enough to tell.
    """
    if not expected_seconds(states):
        return None
    left = run_seconds_left(states).values()
    return max(sum(left) / parallel, max(left, default=0.0))


def progress_line(states: Sequence[RunState], parallel: int) -> str:
    """Return how far a study is on one line: the number of runs in each state, and how long the others take."""
    numbers = {name: sum(state.state == name for state in states) for name in get_args(State)}
    shown = ", ".join(f"{number} {name}" for name, number in numbers.items() if number)
    left = seconds_left(states, parallel)
    return f"{len(states)} runs: {shown}; time left: {'unknown' if left is None else duration(left)}"


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds, as in ``1:02:30``."""
    return str(timedelta(seconds=round(seconds)))
