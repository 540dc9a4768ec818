"""Where the plugin takes hold of vLLM: a few attributes of its classes and modules, and no file."""

import vllm

TESTED = ("0.32",)
"""Versions of vLLM, by their first two numbers, that the tests ran with."""

_installed = False


def is_tested(version: str) -> bool:
    """Return whether a version of vLLM is one of ``TESTED``."""
    return ".".join(version.split(".")[:2]) in TESTED


def install() -> None:
    """Let this process serve CeRA adapters, or refuse them where vLLM's version was not tested."""
    global _installed
    if _installed:
        return
    _installed = True
    if not is_tested(vllm.__version__):
        from cera_vllm import refusal

        refusal.install()
        return
    from vllm.lora import model_manager, worker_manager

    from cera_vllm import frontend, punica, replies
    from cera_vllm.loading import checked_loading
    from cera_vllm.manager import CeraModelManager

    worker = worker_manager.WorkerLoRAManager
    worker._load_adapter = checked_loading(worker._load_adapter)  # type: ignore[method-assign, assignment]
    worker_manager.LRUCacheWorkerLoRAManager._manager_cls = CeraModelManager
    model_manager.get_punica_wrapper = punica.make_wrapper
    replies.install()
    frontend.install()
