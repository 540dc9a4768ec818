"""The CeRA branch around one linear layer (paper Section 3.1, Eq. 2)."""

import math
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn

from cera.adapters.activations import ACTIVATIONS
from cera.adapters.config import CeraConfig

NOT_MERGEABLE = (
    "A CeRA adapter cannot be merged: its update s * W_down(silu(W_up x)) is not linear in x, so no weight "
    "matrix equals it. Serve it unmerged, or remove it with unload()."
)


class CeraLayer(nn.Module, BaseTunerLayer):
    """A frozen linear layer with any number of CeRA adapters beside it, by name.

    Wraps ``torch.nn.Linear``, transformers' ``Conv1D`` and the quantized linears of bitsandbytes: the branch reads
    the layer's input and adds to its output, and so need not know how the base stores its weight.
    """

    adapter_layer_names = ("cera_up", "cera_down")
    other_param_names = ("r", "scaling", "cera_activation", "cera_dropout")

    def __init__(self, base_layer: nn.Module, adapter_name: str, r: int, config: CeraConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features: int
        self.out_features: int
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())  # type: ignore[assignment]
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.cera_up = nn.ModuleDict()
        self.cera_activation = nn.ModuleDict()
        self.cera_dropout = nn.ModuleDict()
        self.cera_down = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters = []
        self._active_adapter = adapter_name
        self.training = base_layer.training
        self.update_layer(adapter_name, r, config)

    def update_layer(self, adapter_name: str, r: int, config: CeraConfig) -> None:
        """Add (or replace) the adapter ``adapter_name`` with latent width ``r``."""
        self.r[adapter_name] = r
        self.scaling[adapter_name] = config.scaling
        self.cera_up[adapter_name] = nn.Linear(self.in_features, r, bias=False)
        self.cera_activation[adapter_name] = ACTIVATIONS[config.activation]()
        self.cera_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.cera_down[adapter_name] = nn.Linear(r, self.out_features, bias=False)
        self.reset_cera_parameters(adapter_name, config.init_weights)
        self.cera_dropout[adapter_name].train(self.training)  # an adapter added to a model in eval mode must not drop
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def reset_cera_parameters(self, adapter_name: str, init_weights: bool) -> None:
        """``W_up`` uniform in +-1/sqrt(in), as ``nn.Linear`` and LoRA's A; ``W_down`` zero (or alike if not)."""
        up, down = (cast(nn.Linear, branch[adapter_name]).weight for branch in (self.cera_up, self.cera_down))
        # Under ZeRO-3 the parameters may be partitioned already: writing to a placeholder would be lost in silence.
        with gather_params_ctx([up, down]):  # type: ignore[list-item]
            nn.init.kaiming_uniform_(up, a=math.sqrt(5))
            if init_weights:
                nn.init.zeros_(down)
            else:
                nn.init.kaiming_uniform_(down, a=math.sqrt(5))

    def update(self, x: Tensor, adapter_name: str) -> Tensor:
        """The adapter's output, ``s * W_down(D(act(W_up x)))``.

        Args:
            x: The base layer's input, (..., in_features), any floating dtype.
            adapter_name: Which adapter.

        Returns:
            (..., out_features), in the dtype of the adapter's weights, or autocast's.
        """
        up = cast(nn.Linear, self.cera_up[adapter_name])
        if not torch.is_autocast_enabled(x.device.type):  # which casts by itself, without the way through fp32
            x = self._cast_input_dtype(x, up.weight.dtype)
        latent = self.cera_dropout[adapter_name](self.cera_activation[adapter_name](up(x)))
        return self.cera_down[adapter_name](latent) * self.scaling[adapter_name]

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """``W0 x`` plus the updates of the active adapters.

        Args:
            x: (batch, ..., in_features).
            adapter_names: One name per row of the batch, for a batch of mixed adapters at inference;
                ``"__base__"`` stands for no adapter.

        Returns:
            (batch, ..., out_features), in the base layer's dtype.
        """
        result = self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return self._mixed_batch(x, result, adapter_names)
        if self.disable_adapters:
            return result
        for name in self.active_adapters:
            if name in self.cera_up:
                result = result + self.update(x, name).to(result.dtype)
        return result

    def _mixed_batch(self, x: Tensor, result: Tensor, adapter_names: list[str]) -> Tensor:
        if len(adapter_names) != len(x):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.disable_adapters:
            return result
        for name in dict.fromkeys(adapter_names):
            if name in self.cera_up:
                rows = torch.tensor([i for i, other in enumerate(adapter_names) if other == name], device=x.device)
                result = result.index_add(0, rows, self.update(x[rows], name).to(result.dtype))
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raises ``NotImplementedError``: there is no such matrix."""
        raise NotImplementedError(NOT_MERGEABLE)

    def unmerge(self) -> None:
        """Raises ``NotImplementedError``: nothing can have been merged."""
        raise NotImplementedError(NOT_MERGEABLE)

    def __repr__(self) -> str:
        return "cera." + super().__repr__()
