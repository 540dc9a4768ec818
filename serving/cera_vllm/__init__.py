"""CeRA adapters in vLLM, beside LoRA, as a plugin: installed, they load wherever a LoRA does.

vLLM calls ``register`` in each of its processes. Importing this package imports neither vLLM nor torch.
"""

__version__ = "0.1.0"


def register() -> None:
    """Install the plugin in this process; vLLM calls it, and calling it again changes nothing.

    In a version of vLLM that it was not tested with, nothing changes but the message with which a CeRA adapter is
    refused.
    """
    from cera_vllm import plugin

    plugin.install()
