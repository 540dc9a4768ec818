"""Shows a study in a terminal or a log: how far its runs are, and what they will take."""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TextIO

from cera.cli.tables import table
from cera.studies.definition import StudyRun
from cera.studies.state import RunState, duration, progress_line
from cera.studies.status import HEADERS, status_rows

IN_LOG = 30.0
"""Seconds between two lines in a log."""

ORDER = ("running", "failed", "diverged", "stopped", "stopped early", "finished", "not begun")
"""Which runs a terminal shows, and which first if it has no place for all."""

LONGEST_REASON = 60
"""Maximum number of characters of a reason in the live table."""


class PlannedRun(NamedTuple):
    """A run before it is started.

    Attributes:
        run: The run.
        parameters: Number of trainable parameters; ``None`` if it cannot be counted here.
        memory: Estimated memory of a process in bytes; ``None`` if it is not estimated.
    """

    run: StudyRun
    parameters: int | None
    memory: int | None


def plan_table(planned: Sequence[PlannedRun], memory: bool, seconds: Mapping[str, float]) -> str:
    """Format the runs of a study with their sizes.

    Args:
        planned: The runs.
        memory: Whether their memory is estimated and shown.
        seconds: How long each run takes, by name; empty if that is not known yet.
    """
    headers = ["run", "method", "parameters", *(["GiB"] if memory else []), *(["time"] if seconds else [])]
    rows = [
        [
            each.run.name,
            each.run.method,
            "unknown" if each.parameters is None else f"{each.parameters:,}",
            *(["unknown" if each.memory is None else f"{each.memory / 2**30:.2f}"] if memory else []),
            *([duration(seconds[each.run.name])] if seconds else []),
        ]
        for each in planned
    ]
    return table(rows, headers, verbatim=range(2, len(headers)))


def status_table(
    states: Sequence[RunState], longest_reason: int | None = None, shown: Sequence[RunState] | None = None
) -> str:
    """Format how far the runs are, and how long they still take.

    Args:
        states: Of all runs, from which the time that is left is estimated.
        longest_reason: Maximum number of characters of a reason.
        shown: The runs to show; by default all that are wanted.
    """
    return table(status_rows(states, longest_reason, shown), list(HEADERS), verbatim=(2, 3, 4, 5))


class LiveTable:
    """Shows the states of runs: a table that is drawn anew on a terminal, a line now and then in a log.

    Args:
        parallel: Number of runs at a time, for the time that is left.
        file: Where it is shown; standard error by default.
    """

    def __init__(self, parallel: int, file: TextIO | None = None) -> None:
        self.parallel = parallel
        self.file = sys.stderr if file is None else file
        self._lines = 0
        self._failed: set[str] = set()
        self._logged = -IN_LOG

    def __call__(self, states: Sequence[RunState]) -> None:
        """Show the states."""
        if self.file.isatty():
            self._draw(states)
        else:
            self._log(states)
        self.file.flush()

    def _draw(self, states: Sequence[RunState]) -> None:
        columns, height = shutil.get_terminal_size()
        wanted = [state for state in states if state.state in ORDER]
        first = sorted(wanted, key=lambda state: ORDER.index(state.state))[: max(height - 5, 1)]
        shown = [state for state in states if state in first]
        lines = [*status_table(states, LONGEST_REASON, shown).splitlines(), progress_line(states, self.parallel)]
        up = f"\x1b[{self._lines}A" if self._lines else ""
        self.file.write(up + "".join(f"\x1b[2K{line[: columns - 1]}\n" for line in lines) + "\x1b[J")
        self._lines = len(lines)

    def _log(self, states: Sequence[RunState]) -> None:
        for state in states:
            if state.state in ("failed", "diverged") and state.run.name not in self._failed:
                self._failed.add(state.run.name)
                self.file.write(f"{state.run.name} {state.state}: {state.reason}\n")
        if time.monotonic() - self._logged >= IN_LOG or all(state.state != "running" for state in states):
            self._logged = time.monotonic()
            self.file.write(f"{progress_line(states, self.parallel)}\n")
