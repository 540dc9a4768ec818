"""Several functions in one process that take turns, each as if the process were its own.

    def work(lane: Lane) -> int:
        losses = lane.ask(batch)  # the others have their turns until whoever serves has a reply
        return 0

    lane = Lane("first", work)
    lane.resume()  # runs until it asks, or has ended
    lane.resume(serve(lane.request))

Lightning's loops are code that cannot be left half-way, so each lane is a thread. Only one thread runs at a time. Each
lane has for itself what a process has once: environment variables, the states of torch's, NumPy's and Python's random
numbers, torch's default data type, standard output and standard error. What is a thread's own (gradient mode, autocast,
inference mode) needs no care.
"""

import contextvars
import os
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from cera.runs.signals import poll, raise_stopped, stop_signals


def generators() -> list[torch.Generator]:
    """Return torch's default generators: that of the CPU, then those of the GPUs if CUDA is in use."""
    gpus = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    return [torch.default_generator, *gpus]


@dataclass
class ProcessState:
    """What a process has once: taken from it with ``ProcessState()``, and given back by ``restore``.

    Attributes:
        environment: Environment variables.
        torch_random: States of ``generators()``.
        numpy_random: State of NumPy's global generator.
        python_random: State of ``random``.
        dtype: torch's default data type.
        stdout: Standard output.
        stderr: Standard error.
    """

    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    torch_random: list[Tensor] = field(default_factory=lambda: [each.get_state() for each in generators()])
    numpy_random: Any = field(default_factory=np.random.get_state)
    python_random: Any = field(default_factory=random.getstate)
    dtype: torch.dtype = field(default_factory=torch.get_default_dtype)
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)

    def restore(self) -> None:
        """Give the process this state."""
        now = dict(os.environ)
        if now != self.environment:
            for name in now.keys() - self.environment.keys():
                del os.environ[name]
            os.environ.update(self.environment)
        for generator, state in zip(generators(), self.torch_random, strict=False):
            generator.set_state(state)
        np.random.set_state(self.numpy_random)
        random.setstate(self.python_random)
        torch.set_default_dtype(self.dtype)
        sys.stdout, sys.stderr = self.stdout, self.stderr


class Lane:
    """A function in a thread of its own that has its turns with ``resume``, from the thread that made it.

    Args:
        name: Its name.
        work: The function; it is given the lane, and returns an exit status.
        log: The file that its output is appended to; ``None`` leaves it to the process's.

    Attributes:
        request: What it waits for a reply to; ``None`` if it has not begun, or has ended.
        status: Its exit status, as a process would have it; ``None`` until it has ended.
    """

    def __init__(self, name: str, work: Callable[["Lane"], int], log: Path | None = None) -> None:
        self.name = name
        self.request: Any = None
        self.status: int | None = None
        self._reply: Any = None
        self._state = ProcessState()
        self._log = None if log is None else log.open("a", buffering=1, encoding="utf-8")
        if self._log is not None:
            self._state.stdout = self._state.stderr = self._log
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run, work), name=name, daemon=True)

    def resume(self, reply: Any = None) -> bool:
        """Let the lane go on until it asks, and return whether it did; otherwise it has ended.

        Args:
            reply: What ``ask`` returns, or an exception that it raises.
        """
        outside = ProcessState()
        self._state.restore()
        self._reply, self.request = reply, None
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._turn.release()
        self._done.acquire()  # signals are handled meanwhile, as this is the main thread
        self._state = ProcessState()
        outside.restore()
        if self.status is not None:
            self._thread.join()
            if self._log is not None:
                self._log.close()
        return self.status is None

    def ask(self, request: Any) -> Any:
        """Return the reply to a request; called by the lane's own function.

        Raises:
            BaseException: What was given as the reply, or what a signal that was passed on makes of it.
        """
        self.request = request
        self._done.release()
        self._turn.acquire()
        reply, self._reply = self._reply, None
        poll()
        if isinstance(reply, BaseException):
            raise reply
        return reply

    @contextmanager
    def random_numbers(self) -> Iterator[None]:
        """Draw torch's random numbers in the ``with`` block as this lane, which waits, would draw its next ones."""
        for generator, state in zip(generators(), self._state.torch_random, strict=False):
            generator.set_state(state)
        yield
        self._state.torch_random = [generator.get_state() for generator in generators()]

    def _run(self, work: Callable[["Lane"], int]) -> None:
        """Run the function to its end; an error is one of this lane alone."""
        status = 1
        try:
            with stop_signals(raise_stopped):
                poll()  # a signal may have come before this lane's first turn
                status = work(self)
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else int(left.code is not None)
        except BaseException:  # as at the top of a process
            traceback.print_exc()
        finally:
            self.status = status
            self._done.release()
