"""Adapters around a whole attention or feed-forward module, parallel to it or after it (paper Tables 3 and 4)."""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from cera.adapters.config import BranchConfig
from cera.adapters.layer import BranchLayer


class ModuleLayer(BranchLayer):
    """A frozen module that maps hidden states to hidden states, with any number of adapters by name.

    A parallel branch (module-level CeRA, He et al.) reads the module's input, a sequential one (Houlsby et al.) its
    output; either adds to the output. Of several active adapters each reads the same hidden states, and the updates
    add up, whatever their order. All else that the module takes and returns, such as masks, caches and attention
    weights, passes through, and its public attributes can be read here, so that the parent and transformers see the
    module that they know.

    Args:
        base_layer: Called with hidden states (batch, length, width), as its first argument or ``hidden_states``;
            returns such, or a tuple that begins with them.
        adapter_name: The first adapter.
        r: Its latent width.
        config: Its settings.
        width: Of the hidden states.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, r: int, config: BranchConfig, width: int) -> None:
        super().__init__(base_layer, adapter_name, r, config, width, width)
        self.sequential = config.sequential

    def forward(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Any:
        """The module's output, the updates of the active adapters added to its hidden states.

        Args:
            args: The module's own, as ``kwargs``.
            adapter_names: One name per row of the batch, for a batch of mixed adapters at inference;
                ``"__base__"`` stands for no adapter.

        Returns:
            What the module returns: hidden states (batch, length, width) or a tuple that begins with them.

        Raises:
            TypeError: There are no hidden states in the call.
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
        """Of the first weight inside the module: it has none of its own."""
        for module in base_layer.modules():
            if not isinstance(module, BaseTunerLayer):
                device, dtype = super()._get_base_layer_device_and_dtype(module)
                if device is not None:
                    return device, dtype
        return None, None

    def __getattr__(self, name: str) -> Tensor | nn.Module | Any:
        """What is not here, but is public in the wrapped module."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or name.startswith("_"):
                raise
            return getattr(self.base_layer, name)
