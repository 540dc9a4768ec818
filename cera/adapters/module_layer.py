"""Adapters around a whole attention or feed-forward module, parallel to it or after it (paper Tables 3 and 4)."""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from cera.adapters.branch_config import BranchConfig
from cera.adapters.layer import BranchLayer


class ModuleLayer(BranchLayer):
    """A frozen module that maps hidden states to hidden states, with any number of adapters by name.

    A parallel branch (module-level CeRA, He et al.) reads the module's input, a sequential one (Houlsby et al.) its
    output; both add to the output. Several active adapters read the same hidden states, and their updates add up in
    any order. Everything else that the module takes and returns, such as masks, caches and attention weights, passes
    through, and the module's public attributes can be read here, so that its parent and transformers can use this
    layer in its place.

    Args:
        base_layer: The module. It is called with hidden states (batch, length, width) as its first argument or as
            ``hidden_states``, and returns hidden states or a tuple that begins with them.
        adapter_name: Name of the first adapter.
        r: Latent width of the first adapter.
        config: Its settings.
        width: Width of the hidden states.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, r: int, config: BranchConfig, width: int) -> None:
        super().__init__(base_layer, adapter_name, r, config, width, width)
        self.sequential = config.sequential

    def forward(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Any:
        """Return the module's output, with the updates of the active adapters added to its hidden states.

        Args:
            args: Positional arguments of the module; ``kwargs`` are its keyword arguments.
            adapter_names: One name per row of the batch, for a batch of mixed adapters at inference;
                ``"__base__"`` stands for no adapter.

        Returns:
            Hidden states (batch, length, width), or a tuple that begins with them.

        Raises:
            TypeError: The call has no hidden states.
        """
        if not args and "hidden_states" not in kwargs:
            raise TypeError(
                f"{type(self.get_base_layer()).__name__} was called without hidden states: a module-level adapter "
                "needs them as the first argument or as the keyword hidden_states."
            )
        output = self.base_layer(*args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        x = hidden if self.sequential else args[0] if args else kwargs["hidden_states"]
        hidden = self.add_updates(x, hidden, adapter_names)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
        """Return device and dtype of the first weight inside the module, which has none of its own."""
        for module in base_layer.modules():
            if not isinstance(module, BaseTunerLayer):
                device, dtype = super()._get_base_layer_device_and_dtype(module)
                if device is not None:
                    return device, dtype
        return None, None

    def __getattr__(self, name: str) -> Tensor | nn.Module | Any:
        """Return a public attribute of the wrapped module that this layer does not have."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or name.startswith("_"):
                raise
            return getattr(self.base_layer, name)
