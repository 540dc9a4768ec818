"""The states of a study's runs as rows of a table, and a table that a notebook draws anew in its place."""

import html
import sys
from collections.abc import Sequence
from typing import Any

from cera.studies.state import NOT_WANTED, RunState, duration, progress_line, run_seconds_left

HEADERS = ("run", "state", "step", "PPL", "time", "left", "reason")


def status_rows(
    states: Sequence[RunState], longest_reason: int | None = None, shown: Sequence[RunState] | None = None
) -> list[list[str]]:
    """Return how far the runs are, and how long they still take, under ``HEADERS``.

    Args:
        states: Of all runs, from which the time that is left is estimated.
        longest_reason: Maximum number of characters of a reason.
        shown: The runs to show; by default all that are wanted.
    """
    left = run_seconds_left(states)
    if shown is None:
        shown = [state for state in states if state.state not in NOT_WANTED]
    return [
        [
            state.run.name,
            f"stopped at step {state.step}" if state.state == "stopped" else state.state,
            f"{state.step} of {state.max_steps or '?'}" if state.step else "-",
            "-" if state.perplexity is None else f"{state.perplexity:.4g}",
            duration(state.seconds) if state.seconds else "-",
            duration(left[state.run.name]) if state.run.name in left else "-",
            (state.reason or "")[:longest_reason],
        ]
        for state in shown
    ]


def notebook_shell() -> Any | None:
    """Return IPython's shell if this process is the kernel of a notebook; ``None`` elsewhere, as in a terminal."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = None if ipython is None else ipython.get_ipython()
    return shell if hasattr(shell, "kernel") else None


def show_figures_as_png() -> None:
    """Let a notebook show figures that pyplot did not make, as ``%matplotlib inline`` does; nothing elsewhere."""
    shell = notebook_shell()
    if shell is not None:
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"})


class NotebookTable:
    """Shows the states of runs in a notebook: one table below the cell, which is replaced at each call.

    Args:
        parallel: Number of runs at a time, for the time that is left.
    """

    def __init__(self, parallel: int) -> None:
        self.parallel = parallel
        self._display: Any = None

    def __call__(self, states: Sequence[RunState]) -> None:
        """Show the states."""
        from IPython.display import display

        shown = {"text/html": self.html(states), "text/plain": progress_line(states, self.parallel)}
        if self._display is None:
            self._display = display(shown, raw=True, display_id=True)
        else:
            self._display.update(shown, raw=True)

    def html(self, states: Sequence[RunState]) -> str:
        """Return the table, with the line on the whole study below it."""
        rows = status_rows(states)
        kept = [i for i, name in enumerate(HEADERS) if name != "reason" or any(row[i] for row in rows)]
        head = "".join(f"<th>{HEADERS[i]}</th>" for i in kept)
        body = "\n".join(f"<tr>{''.join(f'<td>{html.escape(row[i])}</td>' for i in kept)}</tr>" for row in rows)
        return f"<table>\n<tr>{head}</tr>\n{body}\n</table>\n<p>{html.escape(progress_line(states, self.parallel))}</p>"
