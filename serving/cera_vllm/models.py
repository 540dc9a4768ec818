"""The adapters of a server by name: loaded and unloaded while it runs, each from a private copy."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from cera_vllm.adapter_files import AdapterError
from cera_vllm.frontend import store

logger = init_logger("vllm.cera")

SWEEP = 1.0
"""Seconds between two looks whether an adapter without a name is still needed."""
DIGITS = 32
"""Digits of a copy's SHA-256 in the name that the engine knows an adapter by."""


class AdapterModels(OpenAIServingModels):
    """The base model and its adapters.

    The engine knows an adapter as ``NAME@DIGEST``, with a number of its own: another content under the same name is
    another adapter, which shares no cached prefix with the first and may be in the same batch. Clients see ``NAME``.

    Attributes:
        adapters: Name -> directory of the adapters that are loaded at the start, set before vLLM makes an instance.
        root: The directory within which adapters may be loaded later; ``None`` allows none.
    """

    adapters: Mapping[str, Path] = {}
    root: Path | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._numbers: dict[str, int] = {}
        self._retired: dict[str, LoRARequest] = {}
        self._lock = asyncio.Lock()
        self._sweeping: asyncio.Task | None = None
        self._engine = cast(AsyncLLM, self.engine_client)  # vLLM's server has no other

    async def init_static_loras(self) -> None:
        """Load the adapters of the command line; one that is refused is logged, and the others are served."""
        for name, folder in self.adapters.items():
            try:
                async with self._lock:
                    await self._load(name, folder, None)
            except AdapterError as error:
                logger.error("The adapter %s from %s is not served: %s", name, folder, error)

    async def load_lora_adapter(
        self, request: LoadLoRAAdapterRequest, base_model_name: str | None = None
    ) -> ErrorResponse | str:
        """Load an adapter by its path within ``root``, or replace one of the same name with ``load_inplace``."""
        async with self._lock:
            error = await self._check_load_lora_adapter_request(request)
            if error is not None:
                return error
            try:
                check_name(request.lora_name)
                await self._load(request.lora_name, within(self.root, request.lora_path), self.root)
            except AdapterError as refusal:
                return create_error_response(
                    message=f"The adapter {request.lora_name!r} is refused: {refusal}",
                    err_type="BadRequestError",
                    status_code=HTTPStatus.BAD_REQUEST,
                )
        return f"Success: LoRA adapter '{request.lora_name}' added successfully."

    async def unload_lora_adapter(self, request: UnloadLoRAAdapterRequest) -> ErrorResponse | str:
        """Forget an adapter, and free what it takes as soon as no running request needs it."""
        async with self._lock:
            error = await self._check_unload_lora_adapter_request(request)
            if error is not None:
                return error
            self._retire(self.lora_requests.pop(request.lora_name))
            await self._free_retired()
        return f"Success: LoRA adapter '{request.lora_name}' removed successfully."

    async def resolve_lora(self, lora_name: str) -> LoRARequest | ErrorResponse:
        """Return the adapter ``lora_name``, or an error: none is looked for that was not loaded by name."""
        return self.lora_requests.get(lora_name) or create_error_response(
            message=f"The model `{lora_name}` does not exist.",
            err_type="NotFoundError",
            status_code=HTTPStatus.NOT_FOUND,
        )

    def model_name(self, lora_request: LoRARequest | None = None) -> str:
        """Return the name of the base model or of an adapter, as clients know it."""
        return super().model_name(lora_request).partition("@")[0] if lora_request else super().model_name()

    async def show_available_models(self) -> Any:
        """List the base model and the adapters, as clients know them."""
        models = await super().show_available_models()
        for card in models.data:
            if card.root and store().holds(card.root):
                card.id, card.root = card.id.partition("@")[0], Path(card.root).name
        return models

    async def _load(self, name: str, folder: Path, root: Path | None) -> None:
        """Load an adapter from ``folder``, with the lock held; see ``AdapterStore.take`` for ``root`` and errors."""
        copy = await asyncio.to_thread(store().take, folder, root)
        known_as = f"{name}@{copy.name[:DIGITS]}"
        number = self._numbers.setdefault(known_as, self.lora_id_counter.inc(1))
        request = LoRARequest(known_as, number, str(copy))
        try:
            await self._engine.add_lora(request)
        except AdapterError:
            self._retire(request)
            await self._free_retired()
            raise
        self._retired.pop(known_as, None)
        previous = self.lora_requests.get(name)
        self.lora_requests[name] = request
        if previous is not None and previous.lora_name != known_as:
            self._retire(previous)
        await self._free_retired()
        logger.info("Loaded the adapter %s as %s.", name, known_as)

    def _retire(self, request: LoRARequest) -> None:
        if request.lora_name in {other.lora_name for other in self.lora_requests.values()}:
            return
        self._retired[request.lora_name] = request
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        """Free what has no name until nothing is left; the requests that need it may run for long."""
        while self._retired and not self._engine.errored:
            await asyncio.sleep(SWEEP)
            async with self._lock:
                await self._free_retired()

    async def _free_retired(self) -> None:
        """Remove adapters that have no name from the engine, and their copies, unless a request needs them.

        A request that was aborted just now may still be in the engine's queue. The engine takes messages in order: an
        adapter that no request had when it was told to remove it, and that none has had since, is in no queue.
        """
        held = {name: store().holds_of(Path(request.lora_path)) for name, request in self._retired.items()}
        idle = {name: request for name, request in self._retired.items() if not self._is_used(request)}
        for request in idle.values():
            await self._engine.remove_lora(request.lora_int_id)
        for name, request in idle.items():
            if self._is_used(request) or store().holds_of(Path(request.lora_path)) > held[name]:
                continue
            del self._retired[name], self._numbers[name]
            copy = request.lora_path  # which an adapter with another name may have, too
            if copy not in {other.lora_path for other in (*self.lora_requests.values(), *self._retired.values())}:
                store().remove([Path(copy)])

    def _is_used(self, request: LoRARequest) -> bool:
        """Return whether a request that runs, or is about to, has this adapter."""
        running = self._engine.output_processor.request_states.values()
        return store().is_held(Path(request.lora_path)) or any(
            state.lora_name == request.lora_name for state in running
        )


def check_name(name: str) -> None:
    """Check that an adapter can have a name.

    Raises:
        AdapterError: It is empty, or has a character beside letters, digits, ``.``, ``_`` and ``-``.
    """
    if not name or not all(character.isascii() and (character.isalnum() or character in "._-") for character in name):
        raise AdapterError(f"a name has letters, digits and . _ - only, got {name!r}.")


def within(root: Path | None, path: str) -> Path:
    """Return the directory within ``root`` that a client names; links are looked at when a file is opened.

    Raises:
        AdapterError: Adapters cannot be loaded while the server runs, or the path is absolute or leads out of ``root``.
    """
    if root is None:
        raise AdapterError("this server loads no adapters while it runs: start it with --adapter-root.")
    if Path(path).is_absolute() or ".." in Path(path).parts or "\0" in path:
        raise AdapterError(f"a path is relative to the server's --adapter-root and has no '..', got {path!r}.")
    return root / path
