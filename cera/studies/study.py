"""A study, from its file to its report.

    study = Study.load("configs/studies/smol_lr.yaml")
    study.run(parallel=2)
    study.report()
    study.plot()  # a figure of matplotlib, which a notebook shows

Everything is read from the run directories, so that each call may be made in another process, or after a kill.
"""

import fnmatch
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from cera.extras import require
from cera.studies.axes import StudyError
from cera.studies.definition import Definition, read_definition
from cera.studies.preparation import prepare
from cera.studies.report import write_report
from cera.studies.report_figure import figure
from cera.studies.runner import Runner, Watch
from cera.studies.state import ENDED, NOT_WANTED, RunState, progress_line
from cera.studies.status import NotebookTable, notebook_shell, show_figures_as_png
from cera.studies.summarize import read_states, summarize_study
from cera.studies.summary import SUMMARY, Summary


@dataclass(frozen=True)
class Study:
    """A study and the directory of its runs.

    Attributes:
        definition: What its file defines.
        folder: The directory of its run directories.
    """

    definition: Definition
    folder: Path

    @classmethod
    def load(cls, path: str | Path, runs: str | Path = "runs") -> "Study":
        """Read a study's file.

        Args:
            path: The file.
            runs: Directory of all runs; those of the study are in the directory of its name there.

        Raises:
            StudyError: The file is missing or wrong; the message names the field.
        """
        definition = read_definition(Path(path))
        return cls(definition, Path(runs) / definition.name)

    def only(self, *patterns: str) -> "Study":
        """Return the part of the study whose runs have names like one of the patterns, such as ``lora-*-seed0``.

        Raises:
            StudyError: No run has a name like one of them.
        """
        runs = self.definition.runs
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(run.name, pattern) for run in runs):
                name = self.definition.name
                raise StudyError(f"no run of {name} has a name like {pattern!r}, such as {runs[0].name}.")
        chosen = tuple(run for run in runs if any(fnmatch.fnmatchcase(run.name, pattern) for pattern in patterns))
        return replace(self, definition=replace(self.definition, runs=chosen))

    def reusing(self) -> "Study":
        """Return the study as one that copies, in place of training, runs of the studies beside it.

        What is copied has the same settings (``cera.runs.reused``). Two studies that share runs are not two pieces of
        evidence.
        """
        return replace(self, definition=replace(self.definition, reuse=True))

    def run(
        self,
        parallel: int = 1,
        watch: Watch | None = None,
        ray: str | None = None,
        fork: bool = True,
        together: int = 1,
    ) -> list[RunState]:
        """Run what has not ended, write ``summary.json``, and return the states of all runs; see ``Runner``.

        Args:
            parallel: Number of runs at a time.
            watch: Is called with the states of all runs every two seconds. By default, a notebook shows a table of
                them, and a script prints a line when a state changes.
            ray: Address of the Ray cluster on which the runs are started; by default they are here.
            fork: Whether runs here start as forks of a process that has loaded the libraries; see ``Runner``.
            together: Most runs that a process trains over one copy of their base; see ``Runner``.

        Raises:
            StudyError: The study stops runs early, for which it needs Ray; or what it prepares fails; or runs on Ray
                are to be trained together.
        """
        if ray is not None and together > 1:
            raise StudyError("together is for runs on this machine: on Ray each run has its own process.")
        if watch is None:
            watch = _print_changes(parallel) if notebook_shell() is None else NotebookTable(parallel)
        if self.definition.prepare and any(state.state not in (*ENDED, *NOT_WANTED) for state in self.states()):
            prepare(self.definition.prepare)
        if ray is not None:
            require("a study on Ray", "studies")
            from cera.studies.ray_runner import RayRunner  # which needs Ray

            states = RayRunner(self.definition, self.folder, ray, parallel, watch).run()
        elif self.definition.stop_early is not None:
            raise StudyError("stop_early is for runs on Ray: give --ray ADDRESS, such as local, or remove the field.")
        else:
            states = Runner(self.definition, self.folder, parallel, watch, fork, together).run()
        self.summary().save(self.folder / SUMMARY)
        return states

    def states(self) -> list[RunState]:
        """Return how far each run is."""
        return read_states(self.definition, self.folder)

    def summary(self) -> Summary:
        """Return what a report needs, from the run directories."""
        return summarize_study(self.definition, self.folder)

    def report(self, folder: Path | None = None) -> list[Path]:
        """Write the summary and the report, beside the runs unless ``folder`` is given, and return their paths."""
        summary, folder = self.summary(), folder or self.folder
        summary.save(folder / SUMMARY)
        return [folder / SUMMARY, *write_report(summary, folder)]

    def plot(self) -> Figure | None:
        """Return the figure of the report, which a notebook shows; ``None`` while no run has a value."""
        show_figures_as_png()
        return figure(self.summary())


def _print_changes(parallel: int) -> Watch:
    """Return a function that prints a line whenever the state of a run has changed."""
    last: list[str] = []

    def watch(states: Sequence[RunState]) -> None:
        now = [state.state for state in states]
        if now != last:
            print(progress_line(states, parallel), file=sys.stderr, flush=True)
            last[:] = now

    return watch
