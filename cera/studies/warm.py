"""Starts commands of ``cera`` as forks of a process that has imported what they need: most of a start is imports.

    forks = WarmForks(log=Path("study/warm.log"))
    process = forks.open([sys.executable, "-m", "cera", "train", ...], Path("run.log"))
    process.poll()  # the exit status, as of subprocess.Popen

``python -m cera.studies.warm`` is the process that forks: it reads a request a line, and writes the process id of each
fork and, when that has ended, its exit status. Forks outlive it, and it ends with whoever started it. It is for
machines without a GPU, as CUDA does not survive a fork.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cera.studies.measure import CERA

PRELOADED = (
    *("cera.cli.train", "cera.callbacks", "cera.evaluation.command", "cera.spectral.command"),
    *("datasets", "peft", "scipy.stats", "matplotlib.figure", "tensorboard.compat.proto.event_pb2"),
)
"""Modules that most commands of a study need."""

POLL = 0.05
"""Seconds between two looks for ended forks."""

LOST = -int(signal.SIGKILL)
"""Exit status of a fork whose end nobody has seen, as the process that forks was killed."""


class WarmForks:
    """The process that forks, started at the first request, and again if it has been killed.

    Args:
        log: The file for what it prints itself.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self._server: subprocess.Popen | None = None
        self._buffer = b""
        self._ended: dict[int, int] = {}

    def open(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> "WarmFork":
        """Start a command in a process group of its own.

        Args:
            command: A command that begins like ``CERA``.
            log: The file that its output is appended to.
            environment: Its environment.

        Raises:
            OSError: The process that forks does not start; its log says why.
        """
        if self._server is None or self._server.poll() is not None:
            self._start(environment)
        assert self._server is not None
        assert self._server.stdin is not None
        request = {
            "arguments": list(command[len(CERA) :]),
            "log": str(log.absolute()),
            "environment": environment,
            "cwd": os.getcwd(),
        }
        with contextlib.suppress(BrokenPipeError):  # then there is no reply
            self._server.stdin.write(json.dumps(request).encode() + b"\n")
            self._server.stdin.flush()
        while reply := self._read(block=True):
            if "status" not in reply:
                return WarmFork(reply["pid"], self)
        raise OSError(f"the process that starts runs has ended: {self.log} says why.")

    def _start(self, environment: dict[str, str]) -> None:
        with self.log.open("ab") as output:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "cera.studies.warm"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                process_group=0,
            )
        self._buffer = b""

    def close(self) -> None:
        """End the process that forks; forks that still run go on."""
        if self._server is not None:
            for pipe in (self._server.stdin, self._server.stdout):
                assert pipe is not None
                pipe.close()
            self._server.wait()
            self._server = None

    def status(self, pid: int) -> int | None:
        """Return the exit status of a fork, negative for a signal; ``None`` while it runs."""
        while self._read(block=False) is not None:
            pass
        if pid in self._ended:
            return self._ended[pid]
        if self._server is not None and self._server.poll() is None:
            return None
        return None if _is_alive(pid) else LOST

    def _read(self, block: bool) -> dict[str, int] | None:
        """Return the next reply; ``None`` if there is none, or will never be one."""
        if self._server is None:
            return None
        assert self._server.stdout is not None
        descriptor = self._server.stdout.fileno()
        while b"\n" not in self._buffer:
            if not block and not select.select([descriptor], [], [], 0)[0]:
                return None
            data = os.read(descriptor, 65536)
            if not data:
                return None
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        reply = json.loads(line)
        if "status" in reply:
            self._ended[reply["pid"]] = reply["status"]
        return reply


class WarmFork:
    """A command that runs in a fork, with what ``subprocess.Popen`` has that the studies use.

    Args:
        pid: Its process id.
        forks: Where its end is known.
    """

    def __init__(self, pid: int, forks: WarmForks) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._forks = forks

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; ``None`` while it runs."""
        if self.returncode is None:
            self.returncode = self._forks.status(self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, if it runs."""
        if self.poll() is None and _is_alive(self.pid):
            os.kill(self.pid, number)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# The process that forks


def serve() -> dict[str, Any] | None:
    """Fork for each request until there are no more; return the request in the fork, and ``None`` at the end."""
    buffer = b""
    running: set[int] = set()
    while True:
        readable, _, _ = select.select([0], [], [], POLL)
        while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            running.discard(ended[0])
            _reply({"pid": ended[0], "status": os.waitstatus_to_exitcode(ended[1])})
        if not readable:
            continue
        data = os.read(0, 65536)
        if not data:
            return None
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                return json.loads(line)
            running.add(pid)
            _reply({"pid": pid})


def _reply(content: dict[str, int]) -> None:
    try:
        os.write(1, json.dumps(content).encode() + b"\n")
    except BrokenPipeError:  # whoever asked has ended; the forks go on
        sys.exit(0)


def run(request: dict[str, Any]) -> None:
    """Run the command of a request in this process, and exit with its status."""
    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.argv = ["cera", *request["arguments"]]
    runpy.run_module("cera", run_name="__main__", alter_sys=True)  # as python -m cera, which ends in SystemExit


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the runner, which passes it on
    for module in PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the pages that it shares with this process
    request = serve()
    if request is not None:
        run(request)
