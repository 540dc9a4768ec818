"""A ``cera-serve`` of the tiny model in processes of its own, as tests ask it over HTTP."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from material import Answer

START = 900
"""Seconds within which a server must be up; on a busy machine it takes minutes."""


class Refused(Exception):
    """An answer with an error's status.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status


class Server:
    """A server on a free port of the loopback interface, stopped at the end of a ``with`` block.

    Args:
        base: Directory of the model.
        log: File for what it prints.
        options: Further arguments.
        key: The key that requests need.
    """

    def __init__(self, base: Path, log: Path, *options: str, key: str = "secret") -> None:
        self.key = key
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        fixed = [
            "--api-key",
            key,
            "--port",
            str(self.port),
            "--dtype",
            "float32",
            "--max-model-len",
            "256",
            "--enforce-eager",
        ]
        environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "16"  # by default 1024 kernels, one for each number of rows
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cera_vllm", str(base), *fixed, "--enforce-eager", *options],
                stdout=output, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip

    def __enter__(self) -> "Server":
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log.read_text()[-5000:]}")
            try:
                self.get("/health")
                return self
            except OSError:
                time.sleep(0.5)
        self.__exit__()
        raise TimeoutError(f"the server is not up:\n{self.log.read_text()[-5000:]}")

    def __exit__(self, *args: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(self, method: str, path: str, body: Any = None, key: str | None = None, timeout: float = 300) -> str:
        """Return what the server answers.

        Raises:
            Refused: The status is an error's.
        """
        url, data = f"http://127.0.0.1:{self.port}{path}", None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key or self.key}"}
        try:
            request = urllib.request.Request(url, data, headers, method=method)
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode()) from error

    def get(self, path: str) -> str:
        """Return what a GET answers."""
        return self.ask("GET", path, timeout=30)

    def post(self, path: str, **body: Any) -> str:
        """Return what a POST answers."""
        return self.ask("POST", path, body)

    def stream(self, model: str, prompt: list[int], tokens: int) -> Iterator[list[int]]:
        """Yield the tokens of a greedy answer as they come."""
        sampling = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True}
        body = {"model": model, "prompt": prompt, **sampling, "stream": True, "return_token_ids": True}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            for line in connection.getresponse():
                data = line.decode().strip().removeprefix("data: ")
                if data and data != "[DONE]":
                    yield json.loads(data)["choices"][0]["token_ids"]
        finally:
            connection.close()

    def load(self, name: str, path: str, **settings: Any) -> None:
        """Load an adapter by its path below the server's root."""
        self.post("/v1/load_lora_adapter", lora_name=name, lora_path=path, **settings)

    def unload(self, name: str) -> None:
        """Unload an adapter."""
        self.post("/v1/unload_lora_adapter", lora_name=name)

    def models(self) -> list[str]:
        """Return the names of the models."""
        return [model["id"] for model in json.loads(self.get("/v1/models"))["data"]]

    def answer(self, model: str, prompt: list[int], tokens: int = 8, **settings: Any) -> Answer:
        """Return the greedy answer of a model to a prompt of token ids."""
        sampling = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True, "logprobs": 5}
        form = {"return_token_ids": True, "return_tokens_as_token_ids": True}
        answered = json.loads(self.post("/v1/completions", model=model, prompt=prompt, **sampling, **form, **settings))
        assert answered["model"] == model
        (choice,) = answered["choices"]
        logprobs = [
            {int(token.removeprefix("token_id:")): value for token, value in found.items()}
            for found in choice["logprobs"]["top_logprobs"]
        ]
        return Answer(choice["token_ids"], logprobs)
