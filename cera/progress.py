"""Shows how far long work is: as a bar on a terminal, as a line now and then in a log.

Example:
    >>> for batch in progress(batches, "held-out rows", "batch"):
    ...     measure(batch)
"""

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

IN_LOG = 30
"""A line in a log stands for this many updates on a terminal."""


class StatusBar(tqdm):
    """A tqdm bar that writes lines, far apart, where the output is no terminal.

    A log has a line when the work begins, which says what is being done, and one when it has ended. A part of other
    work (``leave=False``) has neither, so that a short part is not in the log at all.

    Args:
        items: What is iterated over; ``None`` for a bar that is advanced with ``update``.
        what: What is being done.
        unit: What is counted.
        file: Where it is shown; standard error by default.
        seconds: Least time between two updates on a terminal.
        options: Further options of tqdm, such as ``total`` and ``initial``.
    """

    def __init__(
        self,
        items: Iterable[Any] | None,
        what: str,
        unit: str,
        file: TextIO | None = None,
        seconds: float = 1.0,
        **options: Any,
    ) -> None:
        file = sys.stderr if file is None else file
        self.leave: bool
        self.in_log = not file.isatty()
        if self.in_log:
            seconds *= IN_LOG
            options |= {"delay": 0 if options.get("leave", True) else seconds, "ncols": 100}
        else:
            options |= {"dynamic_ncols": True}
        super().__init__(
            items, desc=what, unit=f" {unit}", file=file, mininterval=seconds, maxinterval=2 * seconds, **options
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show the state; in a log, on a line of its own. Return whether there is something to clear."""
        if not self.in_log:
            return bool(super().display(msg, pos))
        if msg is None:
            self.fp.write(f"{self}\n")
            self.fp.flush()
        return False

    def close(self) -> None:
        """End the bar; in a log, with a last line."""
        if self.in_log and self.leave and not self.disable:
            self.display()
            self.leave = False  # tqdm would write the line again
        super().close()


def progress(items: Iterable[Any], what: str, unit: str = "it") -> Iterable[Any]:
    """Return an iterable over the items that shows on standard error how far it is."""
    return StatusBar(items, what, unit)
