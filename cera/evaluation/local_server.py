"""A ``cera-serve`` for the time of an evaluation, in a process and an environment of its own."""

import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from cera.evaluation.generation.model_server import ModelServer, ServerError
from cera.serving_environment import PACKAGE

NAME = "adapter"
"""Name of the adapter there."""
POLL = 0.5
"""Seconds between two looks whether the server is up."""
STOP = 60.0
"""Seconds that it has to stop."""
ERROR = re.compile(r"(?:\b\w*Error|\berror): .*")


class LocalServer:
    """A server on a free port of the loopback interface, from the beginning to the end of a ``with`` block.

    It needs a key that only this process has, and stops by itself if this process ends in any other way.

    Args:
        python: Interpreter that has cera-vllm.
        base: Directory or hub name of the base model.
        adapter: Directory of the adapter; ``None`` serves the base alone.
        options: Further arguments of ``cera-serve``.
        log: File for what the server prints.
    """

    def __init__(self, python: str, base: str, adapter: Path | None, options: Sequence[str], log: Path) -> None:
        self.log = log
        self._arguments = [python, "-m", PACKAGE, base, "--until-eof"]
        self._arguments += [f"--adapter={NAME}={adapter}"] if adapter else []
        self._options = options
        self._has_adapter = adapter is not None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ModelServer:
        """Start the server, and return it once it is up.

        Raises:
            ServerError: It ends before, or refuses the adapter; the message has the reason from its log.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        key = secrets.token_hex(16)
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [*self._arguments, f"--port={port}", *self._options],
                env={**os.environ, "VLLM_API_KEY": key}, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        server = ModelServer(f"http://127.0.0.1:{port}", key, str(self.log))
        try:
            self._wait(server)
        except BaseException:
            self.__exit__()
            raise
        return server

    def _wait(self, server: ModelServer) -> None:
        """Wait until the server answers; it takes as long as the model needs to load."""
        assert self._process is not None
        while True:
            if self._process.poll() is not None:
                raise ServerError(
                    f"The server ended with status {self._process.returncode} at its start: {self._first_error()} "
                    f"See {self.log}."
                )
            try:
                names = [model.name for model in server.models() if model.is_adapter]
                break
            except ServerError:
                time.sleep(POLL)
        if self._has_adapter and NAME not in names:
            raise ServerError(f"The server refuses the adapter: {self._refusal()} See {self.log}.")

    def __exit__(self, *error: object) -> None:
        """Stop the server."""
        if self._process is None:
            return
        self._process.terminate()
        stdin: IO[bytes] | None = self._process.stdin
        if stdin is not None:
            stdin.close()
        try:
            self._process.wait(STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _first_error(self) -> str:
        """Return the first error in the log, which later ones follow from, else its last line."""
        text = self.log.read_text(errors="replace").strip()
        found = ERROR.search(text)
        return found.group() if found else text.rpartition("\n")[2]

    def _refusal(self) -> str:
        found = re.search(r" is not served: (.*)", self.log.read_text(errors="replace"))
        return found.group(1) if found else ""
