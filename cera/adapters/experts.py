"""CeRA on the experts of a mixture of experts, which the paper names as future work.

transformers keeps a layer's experts in one module, fused into 3-D parameters: ``gate_up_proj`` (E, 2 * inter, hidden)
and ``down_proj`` (E, hidden, inter). LoRA adds to these weights, which a non-linear branch cannot do, so
``CeraExperts`` computes the experts itself, each with a branch of its own beside each adapted matrix:

    W[e] x  becomes  W[e] x + s * W_down[e](D(act(W_up[e] x)))          W_up: (E, r, in),  W_down: (E, out, r)

The tokens are sorted by expert and multiplied in groups, operation for operation as in transformers' ``grouped_mm``
(its default). A model that is set to ``eager`` or ``batched_mm`` gets the same numbers up to rounding.

Precision: PEFT keeps the adapter of a bf16 model in fp32 (``autocast_adapter_dtype=True``), and the branches' products
with it. Autocast leaves grouped products alone, so the branches cast to its dtype themselves, as other adapters do; the
experts' own products stay in the dtype of their weights, as in transformers. So ``bf16-true``, with or without
an fp32 adapter, runs the experts in bf16, and ``bf16-mixed`` (fp32 weights) runs them in fp32. In nf4 and int8
bitsandbytes quantizes linear layers only: the experts stay as they are loaded and can be adapted.
"""

from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.integrations.moe import _grouped_mm

from cera.adapters.config import CeraConfig
from cera.adapters.dropout import Dropout
from cera.adapters.layer import Unmergeable

PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")
"""The names of experts' weights in transformers, to which a branch can be added."""

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
"""Those of transformers whose result is that of the formula above; the others are kernels for frozen weights."""


class ExpertBranch(nn.Module):
    """``s * W_down[e](D(act(W_up[e] x)))`` (paper Eq. 2), with weights of their own for each expert ``e``.

    Args:
        weight: (E, in, out), the experts' matrices beside which the branch stands.
        r: Width of the latent of each expert.
        config: The other settings.
    """

    def __init__(self, weight: Tensor, r: int, config: CeraConfig) -> None:
        super().__init__()
        number, in_features, out_features = weight.shape
        self.r = r
        self.scaling = config.scaling_at(r)
        self.up = nn.Parameter(torch.empty(number, r, in_features, device=weight.device, dtype=weight.dtype))
        self.down = nn.Parameter(torch.empty(number, out_features, r, device=weight.device, dtype=weight.dtype))
        self.activation = config.latent_map(r).to(weight.device, weight.dtype)  # whose parameters all experts share
        self.dropout = Dropout(config.dropout)
        self.drops_input = config.dropout_on == "input"
        self.reset_parameters(config)

    def reset_parameters(self, config: CeraConfig) -> None:
        """Draw each expert's ``W_up``; set ``W_down`` to zero, or draw it too without ``init_weights``."""
        for up in self.up.detach():
            config.draw(up)
        nn.init.zeros_(self.down)
        if not config.init_weights:
            for down in self.down.detach():
                config.draw(down)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Return the update of each row.

        Args:
            x: (n, in), sorted by expert.
            ends: (E,), int32: where each expert's rows end.

        Returns:
            (n, out), in the dtype of the branch's weights, or autocast's.
        """
        device = x.device.type  # grouped products are not among those that autocast casts
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.up.dtype
        x = self.dropout(x) if self.drops_input else x
        latent = self.activation(_grouped_product(x, self.up.to(dtype).mT, ends))
        latent = latent if self.drops_input else self.dropout(latent)
        return _grouped_product(latent, self.down.to(dtype).mT, ends) * self.scaling


class CeraExperts(Unmergeable, nn.Module, BaseTunerLayer):
    """A frozen module of fused experts with any number of CeRA adapters in it, by name.

    Serves every experts module of transformers that is decorated with ``use_experts_implementation`` and has its
    weights in 16 bit or more: Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, GPT-OSS, DeepSeek-V3 and others.

    Each expert trains on the tokens that the router sends to it; the router is frozen. The adapter has
    ``E * r * (in + out)`` parameters for each adapted matrix.
    """

    adapter_layer_names = tuple(f"cera_{name}" for name in PARAMETERS)

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        for name in self.adapter_layer_names:
            self.register_module(name, nn.ModuleDict())
        self._disable_adapters = False
        self.merged_adapters = []
        self._active_adapter = adapter_name
        self.training = base_layer.training

    def update_layer(self, adapter_name: str, parameter: str, r: int, config: CeraConfig) -> None:
        """Add (or replace) the branch of the adapter ``adapter_name`` beside ``parameter``, one of ``PARAMETERS``."""
        branch = ExpertBranch(self._weight(parameter), r, config).train(self.training)
        self.branches(parameter)[adapter_name] = branch
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def branches(self, parameter: str) -> nn.ModuleDict:
        """Return the branches beside ``parameter``, by adapter."""
        return cast(nn.ModuleDict, getattr(self, f"cera_{parameter}"))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of the outputs of each token's experts, with the updates of the active adapters.

        Args:
            hidden_states: (tokens, hidden).
            top_k_index: (tokens, k), int64: each token's experts.
            top_k_weights: (tokens, k): the router's weights of them.

        Returns:
            (tokens, hidden), in the dtype of ``hidden_states``.

        Raises:
            ValueError: The experts were set to an implementation that is not in ``IMPLEMENTATIONS``.
        """
        active = set() if self.disable_adapters else set(self.active_adapters)
        if not any(active & set(self.branches(name)) for name in PARAMETERS):
            return self.base_layer(hidden_states, top_k_index, top_k_weights)
        experts: Any = self.get_base_layer()
        check_implementation(experts)
        tokens, k = top_k_index.shape
        expert, order = top_k_index.reshape(-1).sort()
        ends = torch.searchsorted(expert, torch.arange(experts.num_experts, device=expert.device), right=True).int()
        x = hidden_states[order // k]
        x = self._project("gate_up_proj" if experts.has_gate else "up_proj", x, expert, ends)
        x = experts._apply_gate(x) if experts.has_gate else experts.act_fn(x)
        x = self._project("down_proj", x, expert, ends)
        if experts.has_post_expert_norm:
            x = experts.post_expert_norm(x)
        x = x * top_k_weights.reshape(-1)[order, None]
        return x[order.argsort()].view(tokens, k, -1).sum(1).to(hidden_states.dtype)

    def _project(self, name: str, x: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        """Return ``W[e] x + b[e]`` plus the updates: (n, in), sorted by ``expert`` (n,) -> (n, out)."""
        branches = self.branches(name)
        result = _grouped_product(x, self._weight(name), ends)
        if self.get_base_layer().has_bias:
            result = result + getattr(self.get_base_layer(), f"{name}_bias")[expert]
        for adapter in self.active_adapters:
            if adapter in branches:
                result = result + branches[adapter](x, ends).to(result.dtype)
        return result

    def _weight(self, name: str) -> Tensor:
        """Return the base's weight as (E, in, out)."""
        experts = self.get_base_layer()
        weight = getattr(experts, name)
        return weight if experts.is_transposed else weight.mT


def are_experts(module: nn.Module) -> bool:
    """Return whether ``module`` is fused experts in the form of transformers' ``use_experts_implementation``."""
    attributes = ("num_experts", "has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "_apply_gate")
    return all(hasattr(module, name) for name in attributes)


def check_experts(module: nn.Module, name: str) -> None:
    """Raise ``ValueError`` if CeRA cannot stand beside the parameter ``name`` (its full name) of ``module``."""
    context = f"CeraConfig.target_parameters matches {name!r} in a {type(module).__name__}"
    parameter = name.rpartition(".")[2]
    if not are_experts(module) or parameter not in PARAMETERS:
        raise ValueError(
            f"{context}. CeRA adapts the parameters {', '.join(PARAMETERS)} of transformers' fused experts (modules "
            "under use_experts_implementation); linear layers are named in target_modules."
        )
    weight = getattr(module, parameter)
    if weight.ndim != 3 or not weight.is_floating_point() or weight.element_size() < 2:
        raise ValueError(
            f"{context}, whose weights are {weight.dtype}. Load the model with its experts in bf16 or fp32."
        )
    check_implementation(module)


def check_implementation(experts: nn.Module) -> None:
    """Raise ``ValueError`` if ``experts`` use an implementation that leaves no place for a branch."""
    implementation = experts.config._experts_implementation  # type: ignore[union-attr]
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"CeRA on experts works with the implementations {', '.join(IMPLEMENTATIONS)}, not with "
            f"{implementation!r}: call model.set_experts_implementation('grouped_mm') first."
        )
    if experts._is_expert_parallel:
        raise ValueError("CeRA on experts does not work with expert parallelism: load the model without it.")
    if any(hasattr(parameter, "ds_id") for parameter in experts.parameters()):
        raise ValueError("CeRA on experts does not work with DeepSpeed ZeRO-3, which spreads them: use ZeRO-2.")


def _grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply rows (n, in), sorted by expert, by their expert's matrix of ``weight`` (E, in, out) -> (n, out)."""
    # torch's kernel has no fp64, and wants rows of a multiple of 16 bytes, in the backward pass too
    aligned = all(size * weight.element_size() % 16 == 0 for size in weight.shape[1:])
    if aligned and weight.dtype != torch.float64:
        return _grouped_mm(x, weight, ends)
    return torch.ops.transformers.grouped_mm_fallback(x.to(weight.dtype), weight, ends)
