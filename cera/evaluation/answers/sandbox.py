"""Runs one function in a process of its own, under limits of time and memory, for input that is not trusted.

    sandbox = Sandbox(Path("equality.py"))
    sandbox.check("9^{9^{9^9}}", "1")  # False, after a quarter of a second of processor time

A ``Sandbox`` has two processes. The keeper starts with the first call, imports what the function needs and warms it up,
which takes a second. It forks the worker, which answers calls until one exceeds a limit and the kernel ends it; the
next worker is forked from the warm keeper in milliseconds. Neither is forked from the caller, so torch, threads and
devices there do not matter.

Each process is watched by the one above it: the keeper ends a worker that does not answer in time, and the caller ends
a keeper that does not. A call whose process crashed, was stopped or was ended from outside is repeated, and then an
error; no verdict comes of it.
"""

import atexit
import contextlib
import importlib
import importlib.util
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

CPU_SECONDS = 0.25
"""Processor time of one call. Unlike wall-clock time, it does not depend on what else runs, so a verdict is the same on
a loaded machine. A call that gets a quarter of a core ends within a second."""

WALL_SECONDS = 8.0
"""Wall-clock time after which the keeper ends the worker of a call, which is stopped or starved. The caller gives the
keeper half as much again."""

START_SECONDS = 100.0
"""Wall-clock time in which a keeper must have imported and warmed up the function."""

ATTEMPTS = 3
"""Number of times that a call is made whose process crashes, is stopped or is ended from outside."""

MEMORY = 1 << 29
"""Address space of the worker in bytes, of which sympy takes an eighth."""

OUT_OF_MEMORY = 77
"""Exit status of a worker whose function ran out of ``MEMORY``."""

VERDICTS = {"true": True, "false": False, "overrun": False}
"""What the keeper answers to a call -> the verdict."""

FAULTS = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGFPE, -signal.SIGILL}
"""Exit codes of a process that crashed. A process that was ended from outside has another: ``-SIGKILL`` or the like."""

PACKAGE = "_sandboxed"
"""The name under which the sandbox's process imports the package of its file."""

Function = Callable[[str, str], bool]
"""The function that a sandbox calls."""


class SandboxError(RuntimeError, OSError):
    """The process of a sandbox cannot be started, or crashes, is stopped or is ended from outside again and again."""


class Sandbox:
    """Calls the function ``check(a, b) -> bool`` of a file, within limits.

    Calls from several threads take turns. A forked process gets a keeper and a worker of its own. These end with the
    process that started them, whatever ends it.

    Args:
        file: A Python file with the functions ``check`` and ``warm_up``. If it belongs to a package, it imports the
            modules beside it relatively (``from .numbers import ...``); the packages around its own are not imported.
        wall_seconds: Wall-clock time of a call, after which its process is taken to be stopped.
    """

    def __init__(self, file: Path, wall_seconds: float = WALL_SECONDS) -> None:
        self.file = file
        self.wall_seconds = wall_seconds
        self._lock = threading.Lock()
        self._keeper: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._forget)

    def check(self, a: str, b: str) -> bool:
        """Return what the function returns; False if it raises or exceeds a limit.

        Raises:
            SandboxError: The keeper cannot be started, or a process crashed, was stopped or was ended from outside in
                each of ``ATTEMPTS`` attempts.
        """
        call, answer = json.dumps([a, b]), ""
        with self._lock:
            for _ in range(ATTEMPTS):
                answer = self._ask(call)
                if answer in VERDICTS:
                    return VERDICTS[answer]
        if answer.startswith("crashed"):
            reason = f"it crashes for {_shorten(a)} and {_shorten(b)}"
        else:
            reason = "something outside stops or ends it, such as a machine without free memory"
        raise SandboxError(
            f"The process for {self.file.name} did not finish a call in {ATTEMPTS} attempts (the last one: {answer}): "
            f"{reason}."
        )

    def close(self) -> None:
        """End the processes; the next call starts them again."""
        with self._lock:
            self._end()

    def _ask(self, call: str) -> str:
        """Return the keeper's answer to a call, or what became of the keeper; it is started if it is not there."""
        answer = ""
        try:
            if self._keeper is None:
                self._start()
            assert self._connection is not None
            answer = _exchange(self._connection, call, 1.5 * self.wall_seconds)
        except TimeoutError:
            return "the keeper is stopped"
        finally:
            if not answer:  # also if the wait was interrupted: the next call must not read this one's answer
                self._end()
        return answer or "the keeper was ended"

    def _start(self) -> None:
        self._connection, other = socket.socketpair()
        with other:
            self._keeper = subprocess.Popen(
                # -P: modules beside this file, such as numbers, must not replace those of the standard library
                [sys.executable, "-P", __file__, str(self.file), str(self.wall_seconds)],
                stdin=other.fileno(),
                # sympy orders terms alike in all runs
                env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
                start_new_session=True,  # Ctrl-C ends the caller only, and the worker can be ended with its keeper
            )
        if _exchange(self._connection, "", START_SECONDS) != "ready":
            keeper = self._keeper
            self._end()
            raise SandboxError(
                f"The process for {self.file.name} cannot be started: it ended with {keeper.returncode}."
            )

    def _end(self) -> None:
        keeper, self._keeper = self._keeper, None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if keeper is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(keeper.pid, signal.SIGKILL)
            keeper.wait()

    def _forget(self) -> None:
        """Replace, in a forked child, what belongs to its parent: the processes, and a lock that may be held."""
        self._lock = threading.Lock()
        self._keeper = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _shorten(text: str) -> str:
    """Return a Python literal of the text, or of its beginning."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _exchange(connection: socket.socket, line: str, seconds: float) -> str:
    """Send a line, and return the line that answers it; it is empty if the other process is gone.

    Raises:
        TimeoutError: The other process neither reads nor answers.
    """
    connection.settimeout(seconds)
    answer = b""
    with contextlib.suppress(ConnectionError):
        connection.sendall(line.encode() + b"\n")
        while not answer.endswith(b"\n"):
            received = connection.recv(1024)
            if not received:
                return ""
            answer += received
    return answer.decode().strip()


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


class _Worker:
    """The process that calls the function, as the keeper sees it.

    Args:
        function: The function.
        caller: The keeper's connection to its caller, which the worker does not keep open.
    """

    def __init__(self, function: Function, caller: socket.socket) -> None:
        self.connection, other = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(caller.fileno())  # caller.close() would leave it open for the file that reads from it
            self.connection.close()
            _work(function, other)
        other.close()

    def ask(self, call: str, seconds: float) -> str:
        """Return ``true`` or ``false``, or what became of the process: ``overrun``, or in words."""
        try:
            if answer := _exchange(self.connection, call, seconds):
                return answer
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            self._end()
            return "the worker is stopped"
        return self._end()

    def _end(self) -> str:
        """Wait for the end of the process, and return how it ended."""
        self.connection.close()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if code in (-signal.SIGPROF, OUT_OF_MEMORY):
            return "overrun"
        if code >= 0:
            return f"crashed with status {code}"
        name = signal.Signals(-code).name
        return f"crashed by {name}" if code in FAULTS else f"the worker was ended by {name}"


def _work(function: Function, keeper: socket.socket) -> NoReturn:
    """Answer the calls of the keeper, one a line, until it is gone or a limit ends this process."""
    for call in keeper.makefile(encoding="utf-8"):
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            answer = b"true\n" if function(*json.loads(call)) else b"false\n"
        except MemoryError:
            os._exit(OUT_OF_MEMORY)  # the process may no longer have the memory to go on
        except Exception:  # any library may raise anything on such input
            answer = b"false\n"
        signal.setitimer(signal.ITIMER_PROF, 0)
        keeper.sendall(answer)
    os._exit(0)


def _keep(file: Path, wall_seconds: float) -> None:
    """Import the function, warm it up, and let one worker after the other answer calls, until the caller is gone."""
    caller = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # standard output belongs to the caller; what the function prints is no output of its
    # with the default action, the kernel ends the process even within a long operation in C
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    function, warm_up = _load(file)
    warm_up()
    for kind, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    calls = caller.makefile(encoding="utf-8")
    calls.readline()  # the caller's question whether this process is ready
    caller.sendall(b"ready\n")
    worker = _Worker(function, caller)
    for call in calls:
        answer = worker.ask(call.strip(), wall_seconds)
        if answer not in ("true", "false"):
            worker = _Worker(function, caller)
        caller.sendall(answer.encode() + b"\n")


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), float(sys.argv[2]))
