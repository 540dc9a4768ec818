"""Runs one function in a process of its own, under limits of time and memory, for input that is not trusted.

    sandbox = Sandbox(Path("equality.py"))
    sandbox.check("9^{9^{9^9}}", "1")  # False, after a quarter of a second of processor time

A ``Sandbox`` has two processes. The keeper starts with the first call, imports what the function needs and warms it up,
which takes a second. It forks the worker, which answers calls until one exceeds a limit and the kernel ends it; the
next worker is forked from the warm keeper in milliseconds. Neither is forked from the caller, so torch, threads and
devices there do not matter.
"""

import atexit
import contextlib
import importlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TextIO

CPU_SECONDS = 0.25
"""Processor time of one call. Unlike wall-clock time, it does not depend on what else runs, so a verdict is the same on
a loaded machine. A call that gets a quarter of a core ends within a second."""

WALL_SECONDS = 10.0
"""Wall-clock time of one call; only a worker that is stopped or starved reaches it."""

MEMORY = 1 << 29
"""Address space of the worker in bytes, of which sympy takes an eighth."""

PACKAGE = "_sandboxed"
"""The name under which the sandbox's process imports the package of its file."""

Function = Callable[[str, str], bool]
"""The function that a sandbox calls."""


class Sandbox:
    """Calls the function ``check(a, b) -> bool`` of a file, within limits.

    Calls from several threads take turns. A forked process gets a keeper and a worker of its own. These end with the
    process that started them, whatever ends it.

    Args:
        file: A Python file with the functions ``check`` and ``warm_up``. If it belongs to a package, it imports the
            modules beside it relatively (``from .numbers import ...``); the packages around its own are not imported.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._keeper: subprocess.Popen[str] | None = None
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._forget)

    def check(self, a: str, b: str) -> bool:
        """Return what the function returns; False if it raises, exceeds a limit, or ends its process.

        Raises:
            RuntimeError: The keeper cannot be started or was ended from outside, which no input causes.
        """
        with self._lock:
            keeper = self._keeper if self._keeper and self._keeper.poll() is None else self._start()
            return self._ask(keeper, json.dumps([a, b])) == "true"

    def close(self) -> None:
        """End the processes; the next call starts them again."""
        with self._lock:
            self._end()

    def _start(self) -> "subprocess.Popen[str]":
        self._keeper = subprocess.Popen(
            # -P: modules beside this file, such as numbers, must not replace those of the standard library
            [sys.executable, "-P", __file__, str(self.file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={
                **os.environ,
                "PYTHONHASHSEED": "0",
                "PYTHONUTF8": "1",
            },  # sympy orders terms alike in all runs
            start_new_session=True,  # Ctrl-C ends the caller only, and the worker can be ended with its keeper
        )
        self._ask(self._keeper, None)
        return self._keeper

    def _ask(self, keeper: "subprocess.Popen[str]", line: str | None) -> str:
        """Send a line, if any, and return the answer; without a line, wait for the keeper to be ready."""
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        answer = ""
        try:
            if line is not None:
                keeper.stdin.write(line + "\n")
                keeper.stdin.flush()
            answer = keeper.stdout.readline().strip()
        except BrokenPipeError:
            pass  # treated like an empty answer
        finally:
            if not answer:  # also if the wait was interrupted: the next call must not read this one's answer
                self._end()
        if not answer:
            raise RuntimeError(f"The process for {self.file.name} ended with code {keeper.returncode}.")
        return answer

    def _end(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(keeper.pid, signal.SIGKILL)
            keeper.wait()

    def _forget(self) -> None:
        """Replace, in a forked child, what belongs to its parent: the processes, and a lock that may be held."""
        self._lock = threading.Lock()
        self._keeper = None


def _load(file: Path) -> tuple[Function, Callable[[], None]]:
    """Import the file and return its ``check`` and ``warm_up``.

    A file of a package is imported as part of it, under a name of its own: Python would otherwise first import the
    packages around it, and ``import cera`` imports torch.
    """
    if (file.parent / "__init__.py").is_file():
        _import_file(PACKAGE, file.parent / "__init__.py", [str(file.parent)])
        module = importlib.import_module(f"{PACKAGE}.{file.stem}")
    else:
        module = _import_file(file.stem, file)
    return module.check, module.warm_up


def _import_file(name: str, file: Path, folders: list[str] | None = None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _work(function: Function, answers: TextIO) -> None:
    """Answer the calls on standard input, one a line, until its end or until a limit ends this process."""
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        try:
            answer = "true" if function(*json.loads(line)) else "false"
        except MemoryError:
            os._exit(1)  # the process may no longer have the memory to go on
        except Exception:  # any library may raise anything on such input
            answer = "false"
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(answer, file=answers, flush=True)


def _keep(file: Path) -> None:
    """Import the function, warm it up, and fork one worker after the other until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the function prints must not be read as an answer
    # with the default actions, the kernel ends the process even within a long operation in C
    signals = (signal.SIGPROF, signal.SIGALRM, signal.SIGPIPE)
    for number in signals:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    function, warm_up = _load(file)
    warm_up()
    for kind, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    print("ready", file=answers, flush=True)
    while True:
        worker = os.fork()
        if worker == 0:
            _work(function, answers)
            os._exit(0)
        if os.waitpid(worker, 0)[1] == 0:
            return  # standard input has ended
        print("overrun", file=answers, flush=True)


if __name__ == "__main__":
    _keep(Path(sys.argv[1]))
