"""What the plugin does in a version of vLLM that it was not tested with: refuse CeRA adapters with the reason."""

import functools
from pathlib import Path
from typing import Any

import vllm
from vllm.lora.worker_manager import WorkerLoRAManager

from cera_vllm import __version__
from cera_vllm.adapter_files import AdapterError, method_of


def install() -> None:
    """Let ``WorkerLoRAManager`` refuse CeRA adapters; everything else is passed on as it came."""
    from cera_vllm.plugin import TESTED

    load = WorkerLoRAManager._load_adapter

    @functools.wraps(load)
    def load_adapter(self: WorkerLoRAManager, lora_request: Any, *args: Any, **kwargs: Any) -> Any:
        if method_of(Path(lora_request.lora_path)) == "CERA":
            raise AdapterError(
                f"{lora_request.lora_name} is a CeRA adapter, and cera-vllm {__version__} does not serve it in vLLM "
                f"{vllm.__version__}: it was tested with vLLM {', '.join(TESTED)}."
            )
        return load(self, lora_request, *args, **kwargs)

    WorkerLoRAManager._load_adapter = load_adapter  # type: ignore[method-assign]
