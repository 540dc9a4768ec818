"""A server of models, asked over HTTP: the OpenAI API as vLLM has it, on which ``cera serve`` builds."""

import contextlib
import json
import math
import socket
import threading
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

TIMEOUT = 60.0
"""Seconds that a short question may take."""
ANSWER_TIMEOUT = 3600.0
"""Seconds that an answer may take, which waits for others and has many tokens."""
COMPLETIONS = "/v1/completions"
INTERNAL_ERROR = 500
LONGEST = 300
"""Maximum number of characters of a server's message that are quoted."""


class ServerError(ValueError):
    """A server cannot be used; the message names its URL, and says why and what would help."""


class RequestRefused(ServerError):
    """A server answers a request with the status of an error.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ServedModel:
    """A model of a server.

    Attributes:
        name: Its name in requests.
        root: What the server made it from: for an adapter of ``cera serve``, its digest.
        is_adapter: Whether it is an adapter.
        positions: Maximum length of prompt and answer, in tokens; ``None`` if the server does not say.
    """

    name: str
    root: str
    is_adapter: bool
    positions: int | None


class ModelServer:
    """A server at a URL. It may be asked from several threads; each request has a connection of its own.

    Args:
        url: Such as ``http://127.0.0.1:8000``.
        key: The key that it needs, if any.
        log: Where its log is, for messages.

    Raises:
        ServerError: The URL is not one of HTTP.
    """

    def __init__(self, url: str, key: str | None = None, log: str | None = None) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise ServerError(f"A server's URL is like http://127.0.0.1:8000, got {url!r}: {error}.") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ServerError(f"A server's URL is like http://127.0.0.1:8000, got {url!r}.")
        self._connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._place = (parts.hostname, port)
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self.url = f"{parts.scheme}://{parts.netloc}{self._prefix}"
        self._key, self._log = key, log
        self._hint = f"See {log}." if log else "Is `cera serve` running there?"
        self._connections: set[HTTPConnection] = set()
        self._lock = threading.Lock()
        self._closed = False

    def twin(self) -> "ModelServer":
        """Return the same server with requests of its own: to close it leaves those of this one alone."""
        return ModelServer(self.url, self._key, self._log)

    def models(self) -> list[ServedModel]:
        """Return what is served."""
        cards = self._field(self.ask("GET", "/v1/models"), "data", list, "/v1/models")
        models = []
        for card in cards:
            name = self._field(card, "id", str, "/v1/models")
            root, positions = card.get("root"), card.get("max_model_len")
            is_adapter = card.get("parent") is not None
            models.append(ServedModel(name, str(root), is_adapter, positions if isinstance(positions, int) else None))
        return models

    def tokens(self, model: str, text: str) -> list[int]:
        """Return the tokens of a text, to which no special tokens are added."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        return self._field(self.ask("POST", "/tokenize", body), "tokens", list, "/tokenize")

    def complete(self, **request: Any) -> list[int]:
        """Return the tokens that continue a prompt, with the end token; ``request`` is vLLM's of completions."""
        return self._field(self._choice(request), "token_ids", list, COMPLETIONS)

    def computes_numbers(self, **request: Any) -> bool:
        """Return whether the log-probability of a first token is a number."""
        try:
            choice = self._choice({**request, "max_tokens": 1, "logprobs": 1})
        except RequestRefused as error:
            if "not JSON compliant" in str(error):  # which Python's json says of NaN
                return False
            raise
        logprobs = self._field(choice, "logprobs", dict, COMPLETIONS)
        values = self._field(logprobs, "token_logprobs", list, COMPLETIONS)
        return all(isinstance(value, int | float) and math.isfinite(value) for value in values)

    def _choice(self, request: dict[str, Any]) -> Any:
        answered = self.ask("POST", COMPLETIONS, {**request, "return_token_ids": True}, ANSWER_TIMEOUT)
        choices = self._field(answered, "choices", list, COMPLETIONS)
        return choices[0] if choices else {}

    def load_adapter(self, name: str, path: str) -> None:
        """Load an adapter from within the server's ``--adapter-root``."""
        self._text("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, ANSWER_TIMEOUT)

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter."""
        self._text("POST", "/v1/unload_lora_adapter", {"lora_name": name}, TIMEOUT)

    def ask(self, method: str, path: str, body: Any = None, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Return the JSON object that the server answers.

        Raises:
            RequestRefused: The status is an error's.
            ServerError: The server cannot be reached, or answers something else.
        """
        text = self._text(method, path, body, timeout)
        try:
            answered = json.loads(text)
        except ValueError:
            answered = None
        if not isinstance(answered, dict):
            raise ServerError(f"{self.url}{path} answers no JSON object, as vLLM does, but {text[:LONGEST]!r}.")
        return answered

    def close(self) -> None:
        """End all requests that run, and refuse further ones; a server of vLLM then stops to work on them."""
        with self._lock:
            self._closed, connections = True, list(self._connections)
        for connection in connections:
            if connection.sock is not None:
                with contextlib.suppress(OSError):  # it has ended in the meantime
                    connection.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads

    def _text(self, method: str, path: str, body: Any, timeout: float) -> str:
        connection = self._connect(*self._place, timeout=TIMEOUT)
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            connection.connect()
            connection.sock.settimeout(timeout)
            with self._lock:
                if self._closed:
                    raise ServerError(f"{self.url} is no longer asked.")
                self._connections.add(connection)
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, self._prefix + path, data, headers)
            response = connection.getresponse()
            status, text = response.status, response.read().decode(errors="replace")
        except TimeoutError as error:
            raise ServerError(f"{self.url}{path} does not answer within {timeout:.0f} s. {self._hint}") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ServerError(f"The server {self.url} cannot be reached: {reason}. {self._hint}") from error
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()
        if status in (401, 403):
            raise RequestRefused(status, f"The server {self.url} wants another key: set VLLM_API_KEY to its --api-key.")
        if status >= 400:
            message = f"The server {self.url}{path} refuses with status {status}: {_message(text)}"
            raise RequestRefused(
                status, f"{message} {self._hint}" if self._log and status >= INTERNAL_ERROR else message
            )
        return text

    def _field(self, answered: Any, name: str, kind: type, path: str) -> Any:
        value = answered.get(name) if isinstance(answered, dict) else None
        if not isinstance(value, kind):
            raise ServerError(
                f"{self.url}{path} answers without {name!r}, as {kind.__name__}: is it a server of vLLM 0.32 or newer?"
            )
        return value


def _message(text: str) -> str:
    """Return the message in the body of an error, as vLLM and FastAPI write it; else the body."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if isinstance(body, dict):
        error = body.get("error")
        message = error.get("message") if isinstance(error, dict) else body.get("detail")
        text = message if isinstance(message, str) else text
    return text[:LONGEST]
