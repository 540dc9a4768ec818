"""Which of a server's models an evaluation is of: an adapter is known by its content, whatever its name is there."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from cera.evaluation.generation.model_server import ModelServer, RequestRefused, ServedModel, ServerError
from cera.runs.adapter_settings import CONFIG_FILE
from cera.runs.adapter_weights import WEIGHTS_FILE

NOT_FOUND = 404


def served_digest(folder: Path) -> str:
    """Return the SHA-256 by which ``cera serve`` knows an adapter: of both files, each before its name and size."""
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (folder / name).open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
            digest.update(f"{name} {file.tell()}".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def served_model(server: ModelServer, adapter: Path | None, path: str | None = None) -> Iterator[ServedModel]:
    """Yield the base model of a server, or the one of its adapters that is ``adapter``.

    Args:
        server: The server.
        adapter: Directory of the adapter; ``None`` for the base.
        path: Where the adapter is within the server's ``--adapter-root``, from where it is loaded for the time of the
            block; ``None`` if it is served already.

    Raises:
        ServerError: The server does not serve it, or refuses to load it.
    """
    if adapter is None:
        yield _base(server)
        return
    digest = served_digest(adapter)
    if path is None:
        yield _adapter(server, adapter, digest)
        return
    name = f"evaluation-{digest[:12]}-{os.getpid()}"
    try:
        server.load_adapter(name, path)
    except RequestRefused as error:
        if error.status != NOT_FOUND:
            raise
        raise ServerError(f"{server.url} loads no adapters while it runs: start it with --adapter-root.") from error
    try:
        yield _adapter(server, adapter, digest)
    except BaseException:
        with contextlib.suppress(ServerError):  # what went wrong before may be the server's end
            server.unload_adapter(name)
        raise
    server.unload_adapter(name)


def _base(server: ModelServer) -> ServedModel:
    bases = [model for model in server.models() if not model.is_adapter]
    if not bases:
        raise ServerError(f"{server.url} serves no base model.")
    return bases[0]


def _adapter(server: ModelServer, folder: Path, digest: str) -> ServedModel:
    adapters = [model for model in server.models() if model.is_adapter]
    for model in adapters:
        if model.root == digest:
            positions = _base(server).positions  # which vLLM tells of the base only
            return ServedModel(model.name, model.root, model.is_adapter, positions)
    names = ", ".join(model.name for model in adapters) or "none"
    raise ServerError(
        f"No adapter of {server.url} is the one in {folder}, file by file (its adapters: {names}). Give it to "
        "`cera serve` as --adapter NAME=DIR, or its path within the server's --adapter-root as --vllm.adapter_path."
    )
