"""One function in a process of its own, under limits of time and memory, for input that nobody has checked.

Two processes stand behind a ``Sandbox``. A keeper, started when it is first needed, imports what the function needs and
warms it up, which takes a second. It forks the worker, which answers calls until one overruns and the kernel ends it;
the next worker is forked from the warm keeper in milliseconds. Neither is forked from the caller, so torch, threads and
devices there do not matter; and the keeper imports the function's module without the packages around it.
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
"""Processor time of one call. It is what limits a call: unlike the clock, it does not depend on what else runs, so that
a verdict is the same on a loaded machine. With a quarter of a core, it is over within a second."""

WALL_SECONDS = 10.0
"""Time by the clock of one call; only a worker that is stopped or starved gets there."""

MEMORY = 1 << 29
"""Address space of the worker, in bytes; sympy takes an eighth of it."""

PACKAGE = "_sandboxed"
"""The name under which the sandbox's process imports the package of its file."""

Function = Callable[[str, str], bool]


class Sandbox:
    """Calls ``check(a, b) -> bool`` of one file where it can do no harm.

    Calls from several threads take turns. A forked process gets workers of its own. All end with the process that
    started them, however that ends.

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
        """What the function says; False if it raises, overruns, or ends its process.

        Raises:
            RuntimeError: The process cannot be started, or is gone: the fault is in the machine, not in the input.
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
            # -P: modules beside this file must not stand in for others of their names
            [sys.executable, "-P", __file__, str(self.file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},  # sympy's orders are the same in every run
            start_new_session=True,  # Ctrl-C is for the caller; and the worker can be ended with its keeper
        )
        self._ask(self._keeper, None)
        return self._keeper

    def _ask(self, keeper: "subprocess.Popen[str]", line: str | None) -> str:
        """The answer to a line; without one, the keeper's word that it is ready."""
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        answer = ""
        try:
            if line is not None:
                keeper.stdin.write(line + "\n")
                keeper.stdin.flush()
            answer = keeper.stdout.readline().strip()
        except BrokenPipeError:
            pass  # as if there were no answer
        finally:
            if not answer:  # also when the wait was interrupted: a late answer must not be taken for the next one
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
        """After a fork, in the child: the processes, and perhaps a held lock, are the parent's."""
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
    """Answer line by line until there are no more, or until a limit ends this process."""
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        try:
            answer = "true" if function(*json.loads(line)) else "false"
        except MemoryError:
            os._exit(1)  # what is left of its memory is of no more use
        except Exception:  # of whatever input, in whatever library
            answer = "false"
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(answer, file=answers, flush=True)


def _keep(file: Path) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the function prints is no answer
    # at their defaults the kernel ends the process, even in the middle of a long operation in C
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
            return  # no more input
        print("overrun", file=answers, flush=True)


if __name__ == "__main__":
    _keep(Path(sys.argv[1]))
