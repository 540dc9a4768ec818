"""The processes of a study on this machine: for each run its training, then what is measured, one after the other.

    processes = Processes(definition, Path("runs/smol_lr"))
    processes.start(run)
    while processes.running:
        processes.collect()

Runs may be trained together in one process. When it has ended, each of them goes on by itself.

Nothing that matters is kept here: which command is next follows from the run directory.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cera.foreign_files import FileError
from cera.runs.directory import RUN_DIR
from cera.runs.finished import FinishedRun, RunError
from cera.studies import tied
from cera.studies.compare import TRAIN
from cera.studies.definition import Definition, StudyRun
from cera.studies.early_stopping import StoppedEarly
from cera.studies.measure import CERA
from cera.studies.state import RECORDS, RunRecord, next_measure, started_with
from cera.studies.warm import WarmFork, WarmForks

MOST_RESTARTS = 1
"""How often a process that a signal killed, perhaps for memory, is started again at once."""

TRAIN_TOGETHER = (*CERA, "train-together")
"""Command that trains several runs in one process; see ``cera.cli.train_together``."""

TOGETHER_LOG = "together.log"
"""The log of the processes that train several runs."""

LONGEST_REASON = 500
"""Maximum number of characters of a failed process's last line that are kept."""


OF_ANOTHER_RUN = {RUN_DIR, "RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"}
"""Variables by which a launcher makes a process a part of a run; Ray on Slurm hands its own on to its workers."""


@dataclass
class Job:
    """A process of a run, or of several that are trained together.

    Attributes:
        runs: The runs.
        command: What is executed; the same command again means that it did not bring the run on.
        process: The process.
        starts: Size of the log of each run before it.
        began: When it was started, by the monotonic clock.
        restarts: How often it was started again after a kill.
    """

    runs: tuple[StudyRun, ...]
    command: list[str]
    process: subprocess.Popen | WarmFork
    starts: tuple[int, ...]
    began: float
    restarts: int = 0

    @property
    def killed(self) -> bool:
        """Whether a signal has ended the process."""
        return (self.process.returncode or 0) < 0


class Processes:
    """Brings runs to their end, each by one process at a time, and records what came of them.

    Args:
        definition: The study.
        folder: The directory of the study.
        cwd: The working directory of the processes; that of this one by default.
        tied_to_this: Whether they save their state and end when this process has died; otherwise they outlive it.
        forks: Where commands of ``cera`` start as forks; ``None`` starts each anew.

    Attributes:
        waiting: Runs that were trained together, or that a kill has ended meanwhile, and are to be started alone.
    """

    def __init__(
        self,
        definition: Definition,
        folder: Path,
        cwd: Path | None = None,
        tied_to_this: bool = False,
        forks: WarmForks | None = None,
    ) -> None:
        self.definition = definition
        self.folder = folder
        self._cwd = cwd
        self._tied = tied_to_this
        self._forks = forks
        self.waiting: list[StudyRun] = []
        self._jobs: list[Job] = []
        self._signal: signal.Signals | None = None

    @property
    def running(self) -> list[str]:
        """Names of the runs that have a process."""
        return [run.name for job in self._jobs for run in job.runs]

    @property
    def number(self) -> int:
        """Number of processes."""
        return len(self._jobs)

    def start(self, *runs: StudyRun) -> None:
        """Start the next process of a run, if it needs one, or one process that trains several runs together."""
        to_train = [run for run in runs if self._is_to_train(run)] if len(runs) > 1 else []
        if len(to_train) > 1:
            self._start_together(to_train)
            self.waiting += [run for run in runs if run not in to_train]
        else:
            self._start(runs[0])
            self.waiting += runs[1:]

    def _is_to_train(self, run: StudyRun) -> bool:
        try:
            command = next_command(self.folder, run, self.definition)
        except FileError:  # which is recorded when the run is started alone
            return False
        return command is not None and tuple(command[: len(TRAIN)]) == TRAIN

    def collect(self) -> list[StudyRun]:
        """Record the processes that have ended, start the next ones of their runs, and return these runs."""
        ended = [job for job in self._jobs if job.process.poll() is not None]
        for job in ended:
            self._jobs.remove(job)
            self._end(job) if len(job.runs) == 1 else self._end_together(job)
        return [run for job in ended for run in job.runs]

    def note(self, sentence: str) -> None:
        """Append a sentence to the log of the processes that train several runs."""
        with (self.folder / RECORDS / TOGETHER_LOG).open("a", encoding="utf-8") as log:
            log.write(sentence + "\n")

    def close(self) -> None:
        """End what was started to start processes from; those that still run go on."""
        if self._forks is not None:
            self._forks.close()

    def stop(self, number: signal.Signals) -> None:
        """Pass the first signal on to all processes, which then save their state; no other one is started."""
        if self._signal is not None:  # a second one would end them at once
            return
        self._signal = number
        for job in self._jobs:
            job.process.send_signal(number)

    def _start(self, run: StudyRun, before: Job | None = None) -> None:
        """Start the next process of a run, if it needs one and the one ``before`` has brought it on."""
        try:
            command = next_command(self.folder, run, self.definition)
        except FileError as error:
            record(self.folder, run, 0.0, str(error))
            return
        if command is None:
            record(self.folder, run, 0.0, None)
            return
        killed = before is not None and before.killed
        if before is not None and not killed and command == before.command:
            record(self.folder, run, 0.0, f"it ended without an error, and without a result: {' '.join(command)}")
            return
        record(self.folder, run, 0.0, None)
        restarts = before.restarts + 1 if before is not None and killed else 0
        self._open_job((run,), command, self._log(run), restarts)

    def _start_together(self, runs: Sequence[StudyRun]) -> None:
        """Start a process that trains several runs; each has its own log, and all share one for the process itself."""
        command = [*TRAIN_TOGETHER, f"--logs={self.folder / RECORDS}"]
        for run in runs:
            record(self.folder, run, 0.0, None)
            command += ["---", *command_to_train(self.folder, run, self.definition.reuse)[len(TRAIN) :]]
        self._open_job(tuple(runs), command, self.folder / RECORDS / TOGETHER_LOG)

    def _log(self, run: StudyRun) -> Path:
        return self.folder / RECORDS / f"{run.name}.log"

    def _open_job(self, runs: tuple[StudyRun, ...], command: list[str], log: Path, restarts: int = 0) -> None:
        starts = tuple(own.stat().st_size if (own := self._log(run)).exists() else 0 for run in runs)
        process = self._open(command, log)
        self._jobs.append(Job(runs, command, process, starts, time.monotonic(), restarts))
        if self._signal is not None:  # it came meanwhile
            process.send_signal(self._signal)

    def _open(self, command: list[str], log: Path) -> subprocess.Popen | WarmFork:
        tie = [sys.executable, tied.__file__, str(os.getpid())] if self._tied else []
        environment = {name: value for name, value in os.environ.items() if name not in OF_ANOTHER_RUN}
        if self._forks is not None and tuple(command[: len(CERA)]) == CERA:
            return self._forks.open(command, log, environment)
        with log.open("ab") as output:
            return subprocess.Popen(  # in a group of its own, as a terminal sends Ctrl-C to all of this one
                [*tie, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=self._cwd,
                process_group=0,
            )

    def _end(self, job: Job) -> None:
        """Record the end of a process, and start the next one of its run."""
        status, seconds = job.process.returncode or 0, time.monotonic() - job.began
        killed = job.killed and job.restarts < MOST_RESTARTS
        (run,) = job.runs
        if self._signal is not None or status == 0 or killed:
            record(self.folder, run, seconds, None)
            if self._signal is None:
                self._start(run, job)
        else:
            record(self.folder, run, seconds, failure(status, self._log(run), job.starts[0]))

    def _end_together(self, job: Job) -> None:
        """Record the end of a process of several runs; those that it brought on, or that it was killed with, wait."""
        status, seconds = job.process.returncode or 0, (time.monotonic() - job.began) / len(job.runs)
        for run, start in zip(job.runs, job.starts, strict=True):
            failed = not job.killed and self._is_to_train(run)
            if failed and self._signal is None:
                record(self.folder, run, seconds, failure(status, self._log(run), start))
                continue
            record(self.folder, run, seconds, None)
            if self._signal is None:
                self.waiting.append(run)


def record(folder: Path, run: StudyRun, seconds: float, failure: str | None) -> None:
    """Record that a process of a run has ended, or was not needed.

    Args:
        folder: The directory of the study.
        run: The run.
        seconds: How long the process took.
        failure: Why it failed; ``None`` if it did not.
    """
    known = RunRecord.read(folder, run) or RunRecord(started_with(run))
    known.seconds = round(known.seconds + seconds, 3)
    known.failure = failure
    known.save(folder, run)


def next_command(folder: Path, run: StudyRun, definition: Definition) -> list[str] | None:
    """Return the command that brings a run on: its training, then what is measured; ``None`` if it has ended.

    Raises:
        FileError: A file of the run is broken.
    """
    path = folder / run.name
    try:
        finished_run = FinishedRun.read(path)
    except RunError:
        return command_to_train(folder, run, definition.reuse)
    if finished_run.divergence:
        return None
    if not finished_run.trained:
        return None if StoppedEarly.read(path) else command_to_train(folder, run, definition.reuse)
    measure = next_measure(finished_run, definition.measures)
    return None if measure is None else measure.command(path)


def command_to_train(folder: Path, run: StudyRun, reuse: bool = False) -> list[str]:
    """Return the command that trains a run, or goes on with what is in its run directory.

    Args:
        folder: The directory of the study.
        run: The run.
        reuse: Whether a run of this study or one beside it that has the same settings is copied instead.
    """
    path = folder / run.name
    resume = path.is_dir() and any(path.iterdir())
    options = [f"--runs={folder}", f"--name={run.name}"]
    answers = [] if "answer_tokens" in run.settings else ["--answer_tokens=0"]
    options += [f"--reuse={folder.parent}"] if reuse else []
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
