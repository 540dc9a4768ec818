"""SIGINT and SIGTERM: the first ends what a process does in good order, the second ends the process at once.

Example:
    >>> with stop_signals(raise_stopped):
    ...     load_and_train()  # ends with a ``Stopped`` after the first signal
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

Receive = Callable[[signal.Signals], None]
"""Is called in the main thread with the first signal."""


class Stopped(SystemExit):
    """A signal stopped the process. Where nothing catches it, Python exits with status 128 + N.

    Attributes:
        signal: The signal.
    """

    def __init__(self, number: signal.Signals, outcome: str = "stopped.") -> None:
        super().__init__(128 + number)
        self.signal = number
        self.outcome = outcome

    def __str__(self) -> str:
        return f"{self.signal.name}: {self.outcome}"


def raise_stopped(number: signal.Signals) -> None:
    """Raise ``Stopped`` where the main thread stands."""
    raise Stopped(number)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Hold the signals back; processes that are started meanwhile begin so, and never lose one."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def leave_signals_to_parent() -> None:
    """Ignore the signals in this process, which was started in ``signals_blocked``, unless its parent sends them.

    A terminal, a scheduler and torchrun send signals to all processes, but a trainer needs its workers until the step
    is done.
    """
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_exit_for_parent, name="leave_signals_to_parent", daemon=True).start()
    else:  # macOS
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _exit_for_parent() -> None:
    """Exit at a signal from the parent process. The signals are blocked in all threads."""
    while True:
        received = signal.sigwaitinfo(SIGNALS)
        if received.si_pid == os.getppid():
            os._exit(128 + received.si_signo)


@contextmanager
def exit_at_interrupt() -> Iterator[None]:
    """End the process at SIGINT with one line and status 130, for imports: libraries make other errors of a Ctrl-C.

    In another thread than the main one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, _exit_at_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def is_command() -> bool:
    """Return whether this process was started as ``cera`` or ``python -m cera``."""
    return Path(*sys.argv[:1]).stem == "cera" or ("-m", "cera") in pairwise(sys.orig_argv)


def _exit_at_interrupt(number: int, frame: FrameType | None) -> None:
    os.write(2, b"\nSIGINT: stopped.\n")
    os._exit(128 + number)


class _State:
    """The receivers of the main thread, the innermost last; the signals since the first came; the mask while it forks;
    the signal that was passed on to other threads."""

    def __init__(self) -> None:
        self.receivers: list[Receive] = []
        self.count = 0
        self.mask: set[Any] = set()
        self.passed_on: signal.Signals | None = None


_state = _State()


class _Thread(threading.local):
    """The receivers of a thread other than the main one, and whether it has received a signal that was passed on."""

    def __init__(self) -> None:
        self.receivers: list[Receive] = []
        self.received = False


_thread = _Thread()


def pass_on(number: signal.Signals | None) -> None:
    """Pass a signal on to all threads that ``poll``; ``None`` takes it back."""
    _state.passed_on = number


def poll() -> None:
    """Give a signal that was passed on to the innermost ``stop_signals`` of this thread, once.

    In the main thread, which handles signals itself, this does nothing.
    """
    if _state.passed_on is not None and _thread.receivers and not _thread.received:
        _thread.received = True
        _thread.receivers[-1](_state.passed_on)


@contextmanager
def stop_signals(receive: Receive) -> Iterator[None]:
    """Pass the first signal on to ``receive``, or to that of a ``with`` block within this one.

    The second ends the process at once with status 128 + N, even if the main thread hangs outside of Python. Processes
    that are forked meanwhile have Python's own handlers. In another thread than the main one a signal is received when
    the main thread has passed it on and this thread polls.
    """
    if threading.current_thread() is not threading.main_thread():
        _thread.receivers.append(receive)
        try:
            yield
        finally:
            _thread.receivers.pop()
        return
    _state.receivers.append(receive)
    try:
        if len(_state.receivers) > 1:
            yield
        else:
            with _handlers():
                yield
    finally:
        _state.receivers.pop()


@contextmanager
def _handlers() -> Iterator[None]:
    """Handle the signals, in a thread those that the main thread does not come to."""
    _state.count = 0
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_watch, args=(reading,), name="stop_signals", daemon=True).start()
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writing)  # which ends the thread


def _handle(number: int, frame: FrameType | None) -> None:
    _state.count += 1
    if _state.count > 1:
        os._exit(128 + number)
    _state.receivers[-1](signal.Signals(number))


def _watch(reading: int) -> None:
    """Exit at the second signal. Python writes the number of each to a pipe when it comes, and handles it later."""
    count = 0
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while numbers := pipe.read(1):
            count += numbers[0] in SIGNALS
            if count > 1:
                os._exit(128 + numbers[0])


def _block() -> None:
    """Hold signals back while this process forks: one in the child is the child's, and not lost in between."""
    if _state.receivers:
        _state.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _unblock() -> None:
    if _state.receivers:
        signal.pthread_sigmask(signal.SIG_SETMASK, _state.mask)


def _reset_in_child() -> None:
    """Give Python's own handlers to a forked process, whose signals are not its parent's."""
    if _state.receivers:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _unblock()
        _state.receivers.clear()


os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_reset_in_child)
