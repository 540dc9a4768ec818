"""Bounds foreign code, such as a chat template: a trial in a child process, and a limit of time in this one.

Nothing within a process goes on after a computation such as ``9**9**9``, and a template may hold one, so a trial comes
first. What loops for some contents only is ended by the limit.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

CPU_SECONDS = 10
"""Maximum processor time of a trial, and of a block within ``time_limit``."""

WALL_SECONDS = 60
"""Maximum duration of a trial."""

MEMORY = 2**30
"""Maximum number of bytes that a trial may take beside what this process has."""

_OUT_OF_MEMORY = 3


def why_unbounded(work: Callable[[], object]) -> str | None:
    """Run ``work`` in a child process; return why it was ended, in words, or ``None`` if it ended by itself.

    An exception of ``work`` ends it by itself, except ``MemoryError``. Where processes cannot fork, nothing is run.
    """
    if not hasattr(os, "fork"):
        return None
    child = os.fork()
    if child == 0:
        _run_and_exit(work)
    deadline = time.monotonic() + WALL_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return _reason(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"did not end within {WALL_SECONDS} s"


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise ``TimeoutError`` in a block that takes more than ``CPU_SECONDS`` of this process's processor time.

    One long operation in C cannot be left by an exception: after twice this time the kernel ends the process, with the
    signal SIGVTALRM. Where there are no such timers, and in another thread than the main one, it does nothing.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGPROF, _raise_timeout)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_VIRTUAL, 2 * CPU_SECONDS)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_VIRTUAL):
            signal.setitimer(timer, 0)
        signal.signal(signal.SIGPROF, previous)


def _raise_timeout(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"it did not end within {CPU_SECONDS} s of processor time")


def _run_and_exit(work: Callable[[], object]) -> None:
    """Run ``work`` under the limits, and leave the child process whatever happens."""
    import resource  # not on Windows

    status = 0
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        statistics = Path("/proc/self/statm")
        if statistics.is_file():
            limit = int(statistics.read_text().split()[0]) * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        work()
    except MemoryError:
        status = _OUT_OF_MEMORY
    finally:
        os._exit(status)  # without the parent's exit handlers and unflushed files


def _reason(status: int) -> str | None:
    if os.WIFSIGNALED(status):
        return f"did not end within {CPU_SECONDS} s of processor time"
    if os.WEXITSTATUS(status) == _OUT_OF_MEMORY:
        return f"needs more than {MEMORY // 2**20} MiB of memory"
    return None
