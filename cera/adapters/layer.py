"""The branch around one frozen layer (paper Section 3.1, Eq. 2): the formula is in ``BranchLayer.update``."""

from typing import Any, Self, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from peft.utils.integrations import dequantize_module_weight, gather_params_ctx
from torch import Tensor, nn

from cera.adapters.branch_config import BranchConfig
from cera.adapters.dropout import Dropout
from cera.adapters.mixed_batch import forget, stack_for

NOT_MERGEABLE = (
    "CeRA, Houlsby and parallel adapters cannot be merged: their update s * W_down(act(W_up x)) is not linear in x, so "
    "no weight matrix equals it. Serve them unmerged, or remove them with unload()."
)


class Unmergeable:
    """A layer whose adapters cannot be merged: what PEFT calls to merge raises ``NotImplementedError``."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise ``NotImplementedError``: no matrix equals a non-linear update."""
        raise NotImplementedError(NOT_MERGEABLE)

    def unmerge(self) -> None:
        """Raise ``NotImplementedError``: nothing can have been merged."""
        raise NotImplementedError(NOT_MERGEABLE)

    def __repr__(self) -> str:
        return "cera." + super().__repr__()


class BranchLayer(Unmergeable, nn.Module, BaseTunerLayer):
    """A frozen layer with any number of adapters, by name, that each add ``s * W_down(D(act(W_up x)))``.

    The weights are registered as ``PREFIXup``, ``PREFIXdown`` and ``PREFIXmagnitude``, where the prefix is that of the
    adapter's method (``cera_``, ``houlsby_``, ``parallel_``). The properties ``branch_up``, ``branch_down``, ... give
    the same modules for every method.

    Args:
        base_layer: The layer to adapt.
        adapter_name: Name of the first adapter.
        r: Latent width of the first adapter.
        config: Its settings.
        in_features: Width of what the branch reads.
        out_features: Width of what it adds to.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        r: int,
        config: BranchConfig,
        in_features: int,
        out_features: int,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features = in_features
        self.out_features = out_features
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self._names = {part: config.prefix + part for part in ("up", "activation", "dropout", "down", "magnitude")}
        self.drops_input: dict[str, bool] = {}
        self.adapter_layer_names = tuple(self._names[part] for part in ("up", "down", "magnitude", "activation"))
        self.other_param_names = ("r", "scaling", "drops_input", self._names["dropout"])
        for part in ("up", "activation", "dropout", "down"):
            self.register_module(self._names[part], nn.ModuleDict())
        self.register_module(self._names["magnitude"], nn.ParameterDict())  # used by the hybrid with DoRA only
        self._disable_adapters = False
        self.merged_adapters = []
        self._active_adapter = adapter_name
        self.training = base_layer.training
        self.update_layer(adapter_name, r, config)

    @property
    def branch_up(self) -> nn.ModuleDict:
        """``W_up`` (r, in_features) of each adapter, as ``nn.Linear``."""
        return cast(nn.ModuleDict, self._modules[self._names["up"]])

    @property
    def branch_activation(self) -> nn.ModuleDict:
        """What maps the pre-activation (..., r) of each adapter to its latent: the activation, and any recurrence."""
        return cast(nn.ModuleDict, self._modules[self._names["activation"]])

    @property
    def branch_dropout(self) -> nn.ModuleDict:
        """The dropout of each adapter, on the latent or, where ``drops_input`` says so, on the input."""
        return cast(nn.ModuleDict, self._modules[self._names["dropout"]])

    @property
    def branch_down(self) -> nn.ModuleDict:
        """``W_down`` (out_features, r) of each adapter, as ``nn.Linear``."""
        return cast(nn.ModuleDict, self._modules[self._names["down"]])

    @property
    def branch_magnitude(self) -> nn.ParameterDict:
        """The magnitude (out_features,) of each adapter that is a hybrid with DoRA."""
        return cast(nn.ParameterDict, self._modules[self._names["magnitude"]])

    def update_layer(self, adapter_name: str, r: int, config: BranchConfig) -> None:
        """Add (or replace) the adapter ``adapter_name`` with latent width ``r``."""
        self.r[adapter_name] = r
        self.scaling[adapter_name] = config.scaling_at(r)
        self.drops_input[adapter_name] = getattr(config, "dropout_on", "latent") == "input"
        self.branch_up[adapter_name] = nn.Linear(self.in_features, r, bias=config.biased)
        self.branch_activation[adapter_name] = config.latent_map(r)
        self.branch_dropout[adapter_name] = Dropout(config.dropout)
        self.branch_down[adapter_name] = nn.Linear(r, self.out_features, bias=config.biased)
        self.reset_branch_parameters(adapter_name, config)
        self.branch_dropout[adapter_name].train(self.training)  # an adapter added to a model in eval mode must not drop
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; see PEFT's ``BaseTunerLayer.delete_adapter``."""
        forget(self)
        super().delete_adapter(adapter_name)

    def train(self, mode: bool = True) -> Self:
        """Set training or eval mode; training drops the copy of the weights that mixed batches keep."""
        if mode:
            forget(self)
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:  # behind to(), cuda(), half() and the like
        forget(self)
        return super()._apply(*args, **kwargs)

    def reset_branch_parameters(self, adapter_name: str, config: BranchConfig) -> None:
        """Draw ``W_up``; set ``W_down`` to zero, or draw it too without ``init_weights``; set biases to zero."""
        up, down = (cast(nn.Linear, branch[adapter_name]) for branch in (self.branch_up, self.branch_down))
        # Under ZeRO-3 the parameters may be partitioned already: writing to a placeholder would be lost in silence.
        with gather_params_ctx([*up.parameters(), *down.parameters()]):  # type: ignore[list-item]
            config.draw(up.weight)
            if config.init_weights:
                nn.init.zeros_(down.weight)
            else:
                config.draw(down.weight)
            if config.biased:
                nn.init.zeros_(up.bias)
                nn.init.zeros_(down.bias)

    def update(self, x: Tensor, adapter_name: str) -> Tensor:
        """Return the adapter's output, ``s * W_down(D(act(W_up x)))``, or ``s * W_down(act(W_up D(x)))``.

        Args:
            x: Input of the branch, (..., in_features), any floating dtype.
            adapter_name: Name of the adapter.

        Returns:
            (..., out_features), in the dtype of the adapter's weights, or autocast's.
        """
        up = cast(nn.Linear, self.branch_up[adapter_name])
        x = self._cast_for(up.weight, x)
        dropout, drops_input = self.branch_dropout[adapter_name], self.drops_input[adapter_name]
        if drops_input and dropout.training:
            x = dropout(x)
        latent = self.branch_activation[adapter_name](up(x))
        if dropout.training and not drops_input:  # in eval mode the call is a tenth of the branch's time for one token
            latent = dropout(latent)
        down, scaling = cast(nn.Linear, self.branch_down[adapter_name]), self.scaling[adapter_name]
        if scaling == 1:
            return down(latent)
        # a pass over the narrow latent costs less than one over the output, but for a bias, which s scales, too
        return down(latent * scaling) if down.bias is None else down(latent) * scaling

    def _cast_for(self, weight: Tensor, x: Tensor) -> Tensor:
        """Return ``x`` in the dtype of the weight, unless autocast is on."""
        if x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type):
            return x  # autocast casts x itself; casting here would add a copy in fp32
        return self._cast_input_dtype(x, weight.dtype)

    def delta(self, x: Tensor, base: Tensor, adapter_name: str) -> Tensor:
        """Return what an adapter adds to ``base``, the base layer's output for ``x``: its update, unless a hybrid."""
        return self.update(x, adapter_name)

    def add_updates(self, x: Tensor, result: Tensor, adapter_names: list[str] | None) -> Tensor:
        """Return ``result`` plus the updates of the active adapters, all of which read ``x``.

        Args:
            x: (batch, ..., in_features).
            result: The base layer's output, (batch, ..., out_features).
            adapter_names: One name per row of the batch, for a batch of mixed adapters at inference;
                ``"__base__"`` stands for no adapter.

        Returns:
            (batch, ..., out_features), in the dtype of ``result``.
        """
        if adapter_names is not None:
            return self._mixed_batch(x, result, adapter_names)
        if self.disable_adapters:
            return result
        base = result
        for name in self.active_adapters:
            if name in self.branch_up:
                result = result + self.delta(x, base, name).to(result.dtype)
        return result

    def _mixed_batch(self, x: Tensor, result: Tensor, adapter_names: list[str]) -> Tensor:
        """Return ``result`` plus each row's own adapter's update.

        The adapters are computed together; see ``cera.adapters.mixed_batch``. Those of which ``stack_for`` says that
        they cannot be are computed one after the other, with one gather and one scatter.
        """
        if len(adapter_names) != len(x):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.disable_adapters:
            return result
        stack = stack_for(self, x, result, adapter_names)
        if stack is None:
            looped = tuple(name for name in dict.fromkeys(adapter_names) if name in self.branch_up)
        else:
            looped = stack.looped
            if stack.up is not None:
                base = self.base_layer
                is_new = isinstance(base, nn.Linear) and not base._forward_hooks  # others may hand on what they keep
                result = result if is_new else result.clone()
                stack.add_to(result, self._cast_for(stack.up, x))
        rows = {name: [i for i, other in enumerate(adapter_names) if other == name] for name in looped}
        if not rows:
            return result
        order = torch.tensor([i for numbers in rows.values() for i in numbers], device=x.device)
        sizes = [len(numbers) for numbers in rows.values()]
        bases = result[order].split(sizes) if self.branch_magnitude else [result] * len(rows)  # only hybrids read it
        parts = zip(x[order].split(sizes), bases, rows, strict=True)
        updates = torch.cat([self.delta(*part) for part in parts])
        return result.index_add(0, order, updates.to(result.dtype))


class CeraLayer(BranchLayer):
    """A frozen linear layer with any number of CeRA adapters beside it, by name.

    Wraps ``torch.nn.Linear``, transformers' ``Conv1D`` and the quantized linears of bitsandbytes: the branch reads
    the layer's input and adds to its output, and so does not depend on how the base stores its weight.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, r: int, config: BranchConfig) -> None:
        linear = base_layer.get_base_layer() if isinstance(base_layer, BaseTunerLayer) else base_layer
        in_features, out_features = cast(tuple[int, int], _get_in_out_features(linear))
        super().__init__(base_layer, adapter_name, r, config, in_features, out_features)

    def update_layer(self, adapter_name: str, r: int, config: BranchConfig) -> None:
        """Add an adapter; see ``BranchLayer.update_layer``.

        The magnitude of a hybrid starts as the norms of the weight's rows, which changes nothing.
        """
        if adapter_name in self.branch_magnitude:
            del self.branch_magnitude[adapter_name]
        hybrid = getattr(config, "use_dora", False)
        if hybrid:
            self.branch_magnitude[adapter_name] = nn.Parameter(torch.empty(self.out_features))
        super().update_layer(adapter_name, r, config)
        if hybrid:
            magnitude = cast(nn.Parameter, self.branch_magnitude[adapter_name])
            read = (self.get_base_layer(), self.branch_up[adapter_name], self.branch_down[adapter_name])
            with torch.no_grad(), gather_params_ctx([magnitude, *(p for module in read for p in module.parameters())]):
                magnitude.copy_(self._norms(adapter_name))

    def delta(self, x: Tensor, base: Tensor, adapter_name: str) -> Tensor:
        """Return the update; for a hybrid with DoRA (Liu et al. 2024), what makes ``base`` the hybrid's output.

        DoRA's output is ``m / n * (W0 + s B A) x`` with a trained magnitude ``m`` for each output and ``n`` the norms
        of the rows of ``W0 + s B A``, taken as constants in the backward pass (its Section 4.3). A branch that is not
        linear in x is no part of a weight. The hybrid is

            m / n * (W0 x + s W_down D(act(W_up x))),    n_i = ||(W0 + s W_down W_up)_i||

        so the norms are those of the branch without activation and dropout. This needs no data, and makes the hybrid
        DoRA exactly where the activation is the identity and dropout 0. The bias stays outside, as in DoRA. What rises
        above the linear branch's norm is not normalized away: ``m`` scales direction and update alike.

        Args:
            x: (batch, ..., in_features).
            base: The base layer's output, (batch, ..., out_features).
            adapter_name: Name of the adapter.

        Returns:
            (batch, ..., out_features).
        """
        update = self.update(x, adapter_name)
        if adapter_name not in self.branch_magnitude:
            return update
        magnitude = self.branch_magnitude[adapter_name]
        scale = magnitude / self._norms(adapter_name).to(magnitude.dtype)
        bias = getattr(self.get_base_layer(), "bias", None)
        return (scale - 1) * (base if bias is None else base - bias) + scale * update

    @torch.no_grad()
    def _norms(self, adapter_name: str) -> Tensor:
        """Return the norms of the rows of ``W0 + s W_down W_up``, (out_features,), computed in fp32.

        Within ``forward`` ZeRO-3 itself gathers what is read here, as it does for any weight of another module, and
        holds it until the end of the layer's forward.
        """
        linear = self.get_base_layer()
        up, down = (cast(nn.Linear, branch[adapter_name]).weight for branch in (self.branch_up, self.branch_down))
        weight = dequantize_module_weight(linear).float()
        if weight.shape != (self.out_features, self.in_features):
            weight = weight.T  # Conv1D stores (in, out)
        product = down.float() @ up.float() * self.scaling[adapter_name]
        return torch.linalg.vector_norm(weight + product.to(weight.device), dim=1).to(down.dtype)

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """Return ``W0 x`` plus the updates of the active adapters.

        Args:
            x: (batch, ..., in_features).
            adapter_names: One name per row of the batch, for a batch of mixed adapters at inference;
                ``"__base__"`` stands for no adapter.

        Returns:
            (batch, ..., out_features), in the base layer's dtype.
        """
        return self.add_updates(x, self.base_layer(x, *args, **kwargs), adapter_names)
