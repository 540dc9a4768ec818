"""How a command ends: exit statuses and error messages that all commands share."""

import sys
from argparse import ArgumentError
from collections.abc import Callable

from cera.cli.errors import error_line
from cera.runs.signals import Stopped


def run_command(body: Callable[[], int | None], on_interrupt: str = "stopped.") -> int:
    """Run the body of a command and return its exit status.

    A user's mistake (``ArgumentError``, ``OSError``, or ``ValueError``, of which the project's errors are subclasses)
    is one line on standard error and status 2; Ctrl-C is one line and status 130; ``Stopped`` is one line and its code.

    Args:
        body: Does the work; ``None`` means status 0.
        on_interrupt: What to tell a user who pressed Ctrl-C, such as how to go on.
    """
    try:
        return body() or 0
    except (ArgumentError, OSError, ValueError) as error:
        print(error_line(error), file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print(f"\n{on_interrupt}", file=sys.stderr)
        return 130
