"""In the process that takes requests: an adapter is copied, checked and loaded before a request may name it.

vLLM loads an adapter within a step, where one that cannot be read ends the engine for everybody. Here it is loaded by a
call that may fail, and what is loaded is a private copy (``AdapterStore``), so that it can be read again later.
"""

import asyncio
import functools
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_adapter_absolute_path
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine

from cera_vllm.adapter_files import AdapterError, method_of
from cera_vllm.store import AdapterStore


@functools.cache
def store() -> AdapterStore:
    """Return the store of this process."""
    return AdapterStore()


class LoadedAdapters:
    """What one engine has loaded: the requests that name adapters, as callers write them and as the engine has them."""

    def __init__(self) -> None:
        self._requests: dict[tuple[int, str, str], LoRARequest] = {}

    @classmethod
    def of(cls, engine: Any) -> "LoadedAdapters":
        """Return those of an engine."""
        return engine.__dict__.setdefault("_cera_loaded_adapters", cls())

    def find(self, request: LoRARequest) -> LoRARequest | None:
        """Return what the engine has for a request; ``None`` if the adapter is not loaded."""
        return request if store().holds(request.lora_path) else self._requests.get(_key(request))

    def add(self, request: LoRARequest, loaded: LoRARequest) -> None:
        """Remember that ``loaded`` is what the engine has for ``request``, and need not be read again."""
        if not store().holds(request.lora_path):
            self._requests[_key(request)] = _copy_of(loaded, loaded.lora_path, load_inplace=False)


def _key(request: LoRARequest) -> tuple[int, str, str]:
    return request.lora_int_id, request.lora_name, request.lora_path


def _copy_of(request: LoRARequest, path: str, load_inplace: bool) -> LoRARequest:
    return LoRARequest(
        request.lora_name,
        request.lora_int_id,
        path,
        base_model_name=request.base_model_name,
        load_inplace=load_inplace,
        is_3d_lora_weight=request.is_3d_lora_weight,
    )


def private(request: LoRARequest) -> LoRARequest:
    """Return the request for a private copy of the adapter, if it is a CeRA; a LoRA's is returned as it is.

    Raises:
        AdapterError: The adapter is not whole.
    """
    folder = Path(get_adapter_absolute_path(request.lora_path))
    if store().holds(folder) or method_of(folder) != "CERA":
        return request
    return _copy_of(request, str(store().take(folder)), request.load_inplace)


class RefusedAdapter(AdapterError, VLLMClientError):
    """An adapter that cannot be served, in the form in which vLLM lets an error reach the one whose request it is."""


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise ``RefusedAdapter`` for whatever made a load fail: of the engine's exception only its message is left."""
    try:
        yield
    except EngineDeadError:
        raise
    except Exception as error:
        raise RefusedAdapter(str(error).rpartition("method failed: ")[2] or repr(error)) from error


@contextmanager
def _held(request: LoRARequest | None) -> Iterator[None]:
    with ExitStack() as stack:
        if request is not None and store().holds(request.lora_path):
            with _refusals():
                stack.enter_context(store().hold(Path(request.lora_path)))
        yield


def install() -> None:
    """Let both engines of this process, ``LLMEngine`` and ``AsyncLLM``, load an adapter before a request names it."""
    _install_sync()
    _install_async()


def _install_sync() -> None:
    add_lora, add_request = LLMEngine.add_lora, LLMEngine.add_request
    signature = inspect.signature(add_request)

    @functools.wraps(add_lora)
    def load(self: LLMEngine, lora_request: LoRARequest) -> bool:
        with _refusals():
            loaded = private(lora_request)
            added = add_lora(self, loaded)
        LoadedAdapters.of(self).add(lora_request, loaded)
        return added

    @functools.wraps(add_request)
    def request(self: LLMEngine, *args: Any, **kwargs: Any) -> Any:
        call = signature.bind(self, *args, **kwargs)
        asked = call.arguments.get("lora_request")
        if asked is not None:
            if LoadedAdapters.of(self).find(asked) is None:
                self.add_lora(asked)
            call.arguments["lora_request"] = LoadedAdapters.of(self).find(asked)
        with _held(call.arguments.get("lora_request")):
            return add_request(*call.args, **call.kwargs)

    LLMEngine.add_lora = load  # type: ignore[method-assign]
    LLMEngine.add_request = request  # type: ignore[method-assign]


def _install_async() -> None:
    add_lora, add_request = AsyncLLM.add_lora, AsyncLLM.add_request
    signature = inspect.signature(add_request)

    @functools.wraps(add_lora)
    async def load(self: AsyncLLM, lora_request: LoRARequest) -> bool:
        with _refusals():
            loaded = await asyncio.to_thread(private, lora_request)
            added = await add_lora(self, loaded)
        LoadedAdapters.of(self).add(lora_request, loaded)
        return added

    @functools.wraps(add_request)
    async def request(self: AsyncLLM, *args: Any, **kwargs: Any) -> Any:
        call = signature.bind(self, *args, **kwargs)
        asked = call.arguments.get("lora_request")
        if asked is not None:
            if LoadedAdapters.of(self).find(asked) is None:
                await self.add_lora(asked)
            call.arguments["lora_request"] = LoadedAdapters.of(self).find(asked)
        with _held(call.arguments.get("lora_request")):
            return await add_request(*call.args, **call.kwargs)

    AsyncLLM.add_lora = load  # type: ignore[method-assign]
    AsyncLLM.add_request = request  # type: ignore[method-assign]
