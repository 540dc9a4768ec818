"""PEFT's LoRA with a normal start of a given standard deviation; the authors' code starts LoRA's A as N(0, 0.01^2).

PEFT's own ``init_lora_weights="gaussian"`` has the standard deviation 1/r, which depends on the rank.
"""

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn


class GaussianLoraLinear(Linear):
    """LoRA beside a linear layer, whose A starts as ``config`` says and whose B is zero."""

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any) -> None:
        """Add an adapter; see PEFT's method, whose start of A is replaced."""
        super().update_layer(adapter_name, r, lora_alpha, config, **kwargs)
        if isinstance(config, GaussianLoraConfig) and config.init_lora_weights is True:
            start: Any = self.lora_A[adapter_name].weight
            nn.init.normal_(start, std=config.init_std)


@dataclass
class GaussianLoraConfig(LoraConfig):
    """LoRA whose A starts as N(0, ``init_std``^2). A saved adapter is an ordinary LoRA.

    Args:
        init_std: Standard deviation of the elements of A at the start.

    Raises:
        ValueError: ``init_std`` is not positive, or another start is asked for, too.
    """

    init_std: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.init_std > 0:
            raise ValueError(f"init_std must be positive, got {self.init_std}.")
        if self.init_lora_weights not in (True, False):
            start = self.init_lora_weights
            raise ValueError(f"init_lora_weights={start!r}: GaussianLoraConfig has a start of its own; use LoraConfig.")
        self._register_custom_module({nn.Linear: GaussianLoraLinear})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings of LoRA, so that the adapter's files are read by any PEFT."""
        return {name: value for name, value in super().to_dict().items() if name != "init_std"}
