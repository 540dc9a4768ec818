"""Runs a command that does not outlive the process that wants it: it gets SIGTERM once, so that a run saves its state.

    python tied.py PARENT COMMAND...   # PARENT: the id of the process that starts this one

It imports nothing of the package, as it waits beside each run in a process of its own. (Without it, the kernel could
send the signal, but would do so for each thread of a parent that dies, and a second SIGTERM ends a run at once.)
"""

import ctypes
import os
import signal
import subprocess
import sys
import time

POLL = 0.1
"""Seconds between two looks at the command and the parent."""

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def main(parent: int, command: list[str]) -> int:
    """Run a command until it ends, and return its exit status, negative for a signal.

    SIGTERM to this process, or the end of its parent, is passed on to the command as SIGTERM.
    """
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    process = subprocess.Popen(command, preexec_fn=_tie if sys.platform == "linux" else None)
    passed_on = False
    while process.poll() is None:
        if not passed_on and (asked or os.getppid() != parent):
            process.terminate()
            passed_on = True
        time.sleep(POLL)
    return process.returncode


def _tie() -> None:
    """Let the kernel send SIGTERM if this process is killed; it has one thread, so that there is one signal."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    status = main(int(sys.argv[1]), sys.argv[2:])
    if status < 0:  # by which the parent sees what killed the command
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)
