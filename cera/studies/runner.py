"""Runs a study: each run and each measurement is a process, several at a time.

    Runner(definition, Path("runs/smol_lr"), parallel=2).run()

Nothing that matters is kept in this process. Killed at any moment, or with any of its runs, it goes on where the run
directories say that it stands. ``cera.studies.ray_runner`` does the same on a cluster.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cera.runs.lock import DirectoryLock, in_use
from cera.runs.signals import Stopped, stop_signals
from cera.studies.axes import StudyError
from cera.studies.definition import Definition, StudyRun
from cera.studies.grouping import DIFFERENCES, companions
from cera.studies.processes import Processes
from cera.studies.state import ENDED, NOT_WANTED, RECORDS, RunState, read_state
from cera.studies.summarize import read_states
from cera.studies.warm import WarmForks

POLL = 0.1
"""Seconds between two looks at the processes."""

REFRESH = 2.0
"""Seconds between two looks at how far the runs are."""

Watch = Callable[[Sequence[RunState]], None]
"""Is called with the states of all runs now and then."""


class Runner:
    """Brings all runs of a study to their end, on this machine.

    Args:
        definition: The study.
        folder: The directory of the study: its run directories, and records and logs in ``study/``.
        parallel: Number of runs at a time.
        watch: See ``Watch``.
        fork: Whether processes start as forks of one that has loaded the libraries; without effect beside a GPU.
        together: Most runs that a process trains, of those that agree in all but a few settings
            (``cera.studies.grouping``).

    Attributes:
        states: State of each run by name.

    Raises:
        StudyError: ``parallel`` or ``together`` is less than 1.
    """

    def __init__(
        self,
        definition: Definition,
        folder: Path,
        parallel: int = 1,
        watch: Watch | None = None,
        fork: bool = True,
        together: int = 1,
    ) -> None:
        for name, number in (("parallel", parallel), ("together", together)):
            if number < 1:
                raise StudyError(f"{name} must be at least 1, got {number}.")
        self.definition = definition
        self.folder = folder
        self.parallel = parallel
        self.together = together
        self.states: dict[str, RunState] = {}
        self._watch = watch
        self._shown = 0.0
        forks = WarmForks(folder / RECORDS / "forks.log") if fork and not torch.cuda.is_available() else None
        self._processes = Processes(definition, folder, forks=forks)
        self._signal: signal.Signals | None = None

    def run(self) -> list[RunState]:
        """Run what has not ended, each run once, and return the states of all runs.

        Raises:
            DirectoryInUse: Another process runs this study.
            StudyError: A run was started with other settings than the study has now.
            Stopped: A signal stopped the study; the runs have saved their state.
        """
        with DirectoryLock(self.folder / RECORDS):
            with stop_signals(self._stop), contextlib.closing(self._processes):
                begun = set[str]()
                while (queue := self._wanted(begun)) and self._signal is None:
                    begun.update(run.name for run in queue)
                    self._work(queue)
            self._show()
        if self._signal is not None:
            raise Stopped(self._signal, "the runs have saved their state; the same command goes on.")
        return list(self.states.values())

    def _wanted(self, begun: Collection[str]) -> list[StudyRun]:
        """Read the states of all runs, and return those to start: after a search of the best value there are others."""
        for state in read_states(self.definition, self.folder):
            self.states[state.run.name] = state
        wanted = [run for run in self.definition.runs if self.states[run.name].state not in (*ENDED, *NOT_WANTED)]
        return [run for run in wanted if run.name not in begun]

    def _work(self, queue: list[StudyRun]) -> None:
        """Bring the runs of the queue to their end, or to a stop after a signal."""
        while self._processes.running or ((queue or self._processes.waiting) and self._signal is None):
            for run in self._processes.collect():
                self._read(run, self._processes.running)
            self._fill(queue)
            self._refresh(self._processes.running)
            time.sleep(POLL)

    def _fill(self, queue: list[StudyRun]) -> None:
        """Start runs while there is place and no signal has come: first those that wait, then those of the queue."""
        busy = []
        while self._signal is None and self._processes.number < self.parallel and (self._processes.waiting or queue):
            if self._processes.waiting:
                self._processes.start(self._processes.waiting.pop(0))
                continue
            run = queue.pop(0)
            if in_use(self.folder / run.name):  # a run that outlived an earlier runner is waited for
                busy.append(run)
                continue
            group = [run]
            if self.together > 1:
                free = [other for other in companions(run, queue) if not in_use(self.folder / other.name)]
                group += free[: self.together - 1]
                if len(group) == 1:
                    self._processes.note(
                        f"{run.name} is trained apart: no run that is left agrees with it in all but {DIFFERENCES}."
                    )
                queue[:] = [other for other in queue if other not in group]
            self._processes.start(*group)
        queue[:0] = busy

    def _refresh(self, running: Collection[str]) -> None:
        """Show now and then how far the ``running`` runs are."""
        if time.monotonic() - self._shown >= REFRESH:
            for run in self.definition.runs:
                if run.name in running:
                    self._read(run, running)
            self._show()
            self._shown = time.monotonic()

    def _read(self, run: StudyRun, running: Collection[str] = ()) -> None:
        state = read_state(self.folder, run, self.definition.measures)
        if run.name in running and state.state not in ENDED:  # which may still be importing, or measure
            state = replace(state, state="running", reason=None)
        self.states[run.name] = state

    def _show(self) -> None:
        if self._watch is not None:
            self._watch(list(self.states.values()))

    def _stop(self, number: signal.Signals) -> None:
        """Pass the first signal on to all processes, which then save their state; no other one is started."""
        self._signal = number
        self._processes.stop(number)
