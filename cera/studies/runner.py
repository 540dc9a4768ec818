"""Runs a study: each run and each measurement is a process, several at a time.

    Runner(definition, Path("runs/smol_lr"), parallel=2).run()

Nothing that matters is kept in this process. Killed at any moment, or with any of its runs, it goes on where the run
directories say that it stands.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cera.foreign_files import FileError
from cera.runs.directory import RUN_DIR
from cera.runs.finished import FinishedRun, RunError
from cera.runs.lock import DirectoryLock, in_use
from cera.runs.signals import Stopped, stop_signals
from cera.studies.axes import StudyError
from cera.studies.compare import TRAIN
from cera.studies.definition import Definition, StudyRun
from cera.studies.state import (
    ENDED,
    RECORDS,
    RunRecord,
    RunState,
    is_trained,
    next_measure,
    read_state,
    started_with,
)

POLL = 0.1
"""Seconds between two looks at the processes."""

REFRESH = 2.0
"""Seconds between two looks at how far the runs are."""

MOST_RESTARTS = 1
"""How often a process that a signal killed, perhaps for memory, is started again at once."""

LONGEST_REASON = 500
"""Maximum number of characters of a failed process's last line that are kept."""

Watch = Callable[[Sequence[RunState]], None]
"""Is called with the states of all runs now and then."""


@dataclass
class Job:
    """A process of a run.

    Attributes:
        run: The run.
        command: What is executed; the same command again means that it did not bring the run on.
        process: The process.
        log: The file that its output is appended to.
        start: Size of the log before it.
        began: When it was started, by the monotonic clock.
        restarts: How often it was started again after a kill.
    """

    run: StudyRun
    command: list[str]
    process: subprocess.Popen
    log: Path
    start: int
    began: float
    restarts: int = 0


class Runner:
    """Brings all runs of a study to their end.

    Args:
        definition: The study.
        folder: The directory of the study: its run directories, and records and logs in ``study/``.
        parallel: Number of processes at a time.
        watch: See ``Watch``.

    Attributes:
        states: State of each run by name.

    Raises:
        StudyError: ``parallel`` is less than 1.
    """

    def __init__(self, definition: Definition, folder: Path, parallel: int = 1, watch: Watch | None = None) -> None:
        if parallel < 1:
            raise StudyError(f"parallel must be at least 1, got {parallel}.")
        self.definition = definition
        self.folder = folder
        self.parallel = parallel
        self.states: dict[str, RunState] = {}
        self._watch = watch
        self._jobs: list[Job] = []
        self._signal: signal.Signals | None = None

    def run(self) -> list[RunState]:
        """Run what has not ended, each run once, and return the states of all runs.

        Raises:
            DirectoryInUse: Another process runs this study.
            StudyError: A run was started with other settings than the study has now.
            Stopped: A signal stopped the study; the runs have saved their state.
        """
        with DirectoryLock(self.folder / RECORDS):
            for run in self.definition.runs:
                self._read(run)
            queue = [run for run in self.definition.runs if self.states[run.name].state not in ENDED]
            with stop_signals(self._stop):
                self._work(queue)
            for run in self.definition.runs:
                self._read(run)
            self._show()
        if self._signal is not None:
            raise Stopped(self._signal, "the runs have saved their state; the same command goes on.")
        return list(self.states.values())

    def _work(self, queue: list[StudyRun]) -> None:
        shown = 0.0
        while self._jobs or (queue and self._signal is None):
            for job in [job for job in self._jobs if job.process.poll() is not None]:
                self._jobs.remove(job)
                self._end(job)
            self._fill(queue)
            if time.monotonic() - shown >= REFRESH:
                for job in self._jobs:
                    self._read(job.run)
                self._show()
                shown = time.monotonic()
            time.sleep(POLL)

    def _fill(self, queue: list[StudyRun]) -> None:
        """Start runs of the queue while there is place and no signal has come."""
        for run in list(queue):
            if self._signal is not None or len(self._jobs) >= self.parallel:
                return
            if not in_use(self.folder / run.name):  # a run that outlived an earlier runner is waited for
                queue.remove(run)
                self._start(run)

    def _read(self, run: StudyRun) -> None:
        state = read_state(self.folder, run, self.definition.measures)
        if any(job.run is run for job in self._jobs):  # which may still be importing, or measure
            state = replace(state, state="running", reason=None)
        self.states[run.name] = state

    def _show(self) -> None:
        if self._watch is not None:
            self._watch(list(self.states.values()))

    def _stop(self, number: signal.Signals) -> None:
        """Pass the first signal on to all processes, which then save their state; no other one is started."""
        self._signal = number
        for job in self._jobs:
            job.process.send_signal(number)

    def _start(self, run: StudyRun, before: Job | None = None) -> None:
        """Start the next process of a run, if it needs one and the one ``before`` has brought it on."""
        try:
            command = next_command(self.folder, run, self.definition)
        except FileError as error:
            self._record(run, 0.0, str(error))
            return
        if command is None:
            self._record(run, 0.0, None)
            return
        killed = before is not None and before.process.returncode < 0
        if before is not None and not killed and command == before.command:
            self._record(run, 0.0, f"it ended without an error, and without a result: {' '.join(command)}")
            return
        self._record(run, 0.0, None)
        log = self.folder / RECORDS / f"{run.name}.log"
        start = log.stat().st_size if log.exists() else 0
        environment = {name: value for name, value in os.environ.items() if name != RUN_DIR}
        with log.open("ab") as output:
            process = subprocess.Popen(  # in a group of its own, as a terminal sends Ctrl-C to all of this one
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                process_group=0,
            )
        restarts = before.restarts + 1 if before is not None and killed else 0
        self._jobs.append(Job(run, command, process, log, start, time.monotonic(), restarts))
        if self._signal is not None:  # it came meanwhile
            process.send_signal(self._signal)

    def _end(self, job: Job) -> None:
        """Record the end of a process, and start the next one of its run."""
        status, seconds = job.process.returncode, time.monotonic() - job.began
        killed = status < 0 and job.restarts < MOST_RESTARTS
        if self._signal is not None or status == 0 or killed:
            self._record(job.run, seconds, None)
            if self._signal is None:
                self._start(job.run, job)
        else:
            self._record(job.run, seconds, failure(status, job.log, job.start))
        self._read(job.run)

    def _record(self, run: StudyRun, seconds: float, reason: str | None) -> None:
        record = RunRecord.read(self.folder, run) or RunRecord(started_with(run))
        record.seconds = round(record.seconds + seconds, 3)
        record.failure = reason
        record.save(self.folder, run)


def next_command(folder: Path, run: StudyRun, definition: Definition) -> list[str] | None:
    """Return the command that brings a run on: its training, then what is measured; ``None`` if it has ended.

    Raises:
        FileError: A file of the run is broken.
    """
    path = folder / run.name
    try:
        finished_run = FinishedRun.read(path)
    except RunError:
        return command_to_train(folder, run)
    if finished_run.divergence:
        return None
    if not is_trained(finished_run):
        return command_to_train(folder, run)
    measure = next_measure(finished_run, definition.measures)
    return None if measure is None else measure.command(path)


def command_to_train(folder: Path, run: StudyRun) -> list[str]:
    """Return the command that trains a run, or goes on with what is in its run directory."""
    path = folder / run.name
    resume = path.is_dir() and any(path.iterdir())
    options = [f"--runs={folder}", f"--name={run.name}"]
    answers = [] if "answer_tokens" in run.settings else ["--answer_tokens=0"]
    return [*TRAIN, *run.arguments(), *options, *answers, *(["--ckpt_path=last"] if resume else [])]


def failure(status: int, log: Path, start: int) -> str:
    """Return why a process failed: the signal that killed it, or the last line that it printed.

    Args:
        status: Its exit status.
        log: The file with its output.
        start: Where its output begins, in bytes.
    """
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    last = (errors or lines or ["it printed nothing"])[-1]
    return f"status {status}: {last.removeprefix('error: ')[:LONGEST_REASON]}"
