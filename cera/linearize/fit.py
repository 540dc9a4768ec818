"""The best linear stand-in for a trained CeRA adapter, and how much of it that keeps.

A CeRA adapter cannot be merged: its update ``U = s act(X W_up^T) W_down^T`` (paper Eq. 2, a row for each token) is not
linear in the layer's input ``X``. On given data there is nevertheless a best linear map of rank r', that of
reduced-rank regression:

    minimize ||X W^T - U||_F^2  over W of rank r'  :  W = B A,  B = Q V,  A = V^T C^T,  C = X^+ Y

where ``W_down = Q R`` is a thin QR decomposition, ``Y = s act(X W_up^T) R^T`` is the update in the basis ``Q`` (tokens
x min(r, out)), and ``V`` holds the r' leading right singular vectors of ``X C``. ``U`` lies in the range of ``W_down``,
so at r' = r, the default, nothing is lost but what is not linear. The residual is orthogonal to the fit, and the share
of the energy that is kept, ``||X W^T||^2 / ||U||^2``, is 1 exactly where the adapter is linear on the data: 1 minus it
measures how non-linear the trained adapter is, which the paper does not give. (A bias does not count as linear here:
LoRA has none.)

Accuracy: no activation is stored. The columns ``[X Y]`` are streamed into their triangular factor
(``cera.spectral.SpectrumAccumulator``), which poses the same least-squares problem; moments like ``X^T X`` would square
the condition number. Singular values below ``max(shape) * 2.2e-16`` of the largest are zeros in fp64 and are left out:
directions that the data do not have (fewer tokens than inputs, dead features) get a zero in ``A``. There is no ridge.
The update is computed in fp64 from the inputs that the model, in its own precision, gives the layer: the rounding of a
bf16 latent is not taken for non-linearity.

Fitted to few tokens, a map follows their noise: with n tokens and d inputs about d / n of the residual is explained by
chance, and all of it where n <= d. So the share is also measured on batches held out of the fit, and that is the number
to quote. It is negative where the stand-in is worse than no adapter.

Memory: ``8 (in + q)^2`` bytes for each input that layers share, q being the sum of their ranks, and about six times
that for the one being updated or solved. Llama-3-8B at r=128, whose queries and values share their input: 152 MB for
each of 32 layers. ``layers_at_a_time`` bounds it, at one more pass over the data for each group. Each batch costs a QR
decomposition of (tokens + in + q) x (in + q) a shared input, so larger batches are cheaper; in the end there is one SVD
of an ``in`` x ``in`` matrix for each, on the CPU.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cera.adapters import CeraConfig, CeraLayer
from cera.spectral import SpectrumAccumulator
from cera.spectral.hooks import base_name

__all__ = ["Linearization", "LinearizedLayer", "can_linearize", "least_squares", "linearize"]

Batch = Mapping[str, Any]
EVERY = 4
"""One batch in so many is held out of the fit, the first of them."""


@dataclass(frozen=True)
class LinearizedLayer:
    """The stand-in for one layer's update.

    Attributes:
        name: Of the layer in the base model.
        rank: Of the stand-in.
        kept: Share of the update's energy that it keeps on the data it was fitted to, in [0, 1].
        held_out: ``1 - ||U - X W^T||^2 / ||U||^2`` on held-out data, at most 1.
        any_rank: The same of the best linear map of any rank: equal to ``held_out`` unless ``rank`` is below the
            adapter's r.
        up: ``A``, (rank, in) fp32.
        down: ``B``, (out, rank) fp32, its columns orthonormal.
    """

    name: str
    rank: int
    kept: float
    held_out: float
    any_rank: float
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Linearization:
    """A plain LoRA adapter, and how well it stands in for the CeRA adapter that it was fitted to.

    Attributes:
        layers: In the model's order.
        config: The LoRA's; its scaling is 1 in every layer.
        others: Modules that CeRA's ``modules_to_save`` trained whole, as they are, by their key in the adapter's file.
        tokens: Number of tokens fitted to, and held out.
    """

    layers: list[LinearizedLayer]
    config: LoraConfig
    others: dict[str, Tensor]
    tokens: tuple[int, int]

    @property
    def kept(self) -> float:
        """Share of the update's energy that is kept on the data fitted to: the mean over layers."""
        return fmean([layer.kept for layer in self.layers])

    @property
    def held_out(self) -> float:
        """Share of the update's energy that is kept on held-out data: the mean over layers."""
        return fmean([layer.held_out for layer in self.layers])

    @property
    def any_rank(self) -> float:
        """``held_out`` of the best linear maps of any rank."""
        return fmean([layer.any_rank for layer in self.layers])

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter's tensors, as PEFT names them in ``adapter_model.safetensors``."""
        tensors = dict(self.others)
        for layer in self.layers:
            tensors[f"base_model.model.{layer.name}.lora_A.weight"] = layer.up
            tensors[f"base_model.model.{layer.name}.lora_B.weight"] = layer.down
        return tensors

    def save(self, folder: str | Path) -> None:
        """Write a LoRA adapter into ``folder``: ``PeftModel.from_pretrained`` loads it, and it can be merged."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        self.config.save_pretrained(str(folder))

    def table(self) -> str:
        """A row for each layer, and their mean: the energy kept, in percent."""
        width = max(len(layer.name) for layer in self.layers)
        rows = [f"{'layer':<{width}} {'rank':>5} {'fitted to':>10} {'held out':>9} {'any rank':>9}"]
        for layer in self.layers:
            rows.append(f"{layer.name:<{width}} {layer.rank:>5} {_percent(layer)}")
        return "\n".join([*rows, f"{'mean':<{width}} {'':>5} {_percent(self)}"])


def linearize(
    model: nn.Module,
    data: Iterable[Batch],
    rank: int | None = None,
    adapter: str = "default",
    held_out: Iterable[Batch] | None = None,
    layers_at_a_time: int | None = None,
) -> Linearization:
    """Fit a LoRA to each layer's update of a CeRA adapter, by least squares over the tokens of ``data``.

    Every layer is fitted to the inputs that it has in the model with CeRA in it. The model is left as it was.

    Args:
        model: A PEFT model; ``adapter`` is the only active one. Quantized or not, in any precision.
        data: Batches with ``input_ids`` (batch, length) and, if they have them, ``position_ids`` and
            ``attention_mask``. ``tokens``, else ``attention_mask``, tells tokens from padding, which does not count.
        rank: Of the LoRA, for layers whose own r is not smaller; ``None`` takes each layer's r.
        adapter: Name of the CeRA adapter.
        held_out: Batches to measure on; ``None`` holds every fourth batch of ``data`` out of the fit.
        layers_at_a_time: How many layers are fitted in one pass over the data, to save memory; ``None`` takes all.

    Raises:
        ValueError: The adapter is not a CeRA adapter or not active, there are too few batches, or a number is out of
            its range.
        cera.spectral.NonFiniteError: A layer's input or update is NaN or infinite.
    """
    for field, value in (("rank", rank), ("layers_at_a_time", layers_at_a_time)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{field} must be a positive integer, got {value!r}.")
    config = _check(model, adapter)
    fit = list(data)  # token ids are small; activations are not
    if held_out is None:
        fit, held_out = [batch for i, batch in enumerate(fit) if i % EVERY], fit[::EVERY]
    held = list(held_out)
    if not fit or not held:
        raise ValueError(f"There are {len(fit)} batches to fit to and {len(held)} to hold out; give at least one each.")
    updates = [
        _Update(base_name(name), layer, adapter)
        for name, layer in model.named_modules()
        if isinstance(layer, CeraLayer) and adapter in layer.cera_up
    ]
    size = layers_at_a_time or len(updates)
    was_training = model.training
    model.eval()
    try:
        parts = [_fit(model, updates[i : i + size], fit, held, rank) for i in range(0, len(updates), size)]
    finally:
        model.train(was_training)
    layers = [layer for part, _ in parts for layer in part]
    lora = _lora_config(model, config, layers)
    lora.fan_in_fan_out = any(isinstance(update.layer.get_base_layer(), Conv1D) for update in updates)
    return Linearization(layers, lora, _saved_whole(model, adapter), parts[0][1])


def least_squares(x: Tensor, *ys: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The linear maps from ``x`` to each ``y`` of least squares, and their best approximations of every lower rank.

    Args:
        x: (m, in) fp64, of any rank.
        ys: Each (m, q) fp64.

    Returns:
        For each ``y`` a pair ``up`` (k, in) and ``down`` (q, k), k = min(m, q): no map of rank r' <= k comes closer to
        ``y`` than ``down[:, :r'] @ up[:r']``. The columns of ``down`` are orthonormal, and where ``x`` has no
        component, nor have the rows of ``up``.
    """
    cutoff = max(x.shape) * torch.finfo(x.dtype).eps
    # gelsd (by SVD) is on the CPU only. gelsy would be faster, but torch 2.13 gives it a pivot vector that is not
    # initialized: on data of lower rank it is wrong every other time (pytorch/pytorch#187411).
    solution = torch.linalg.lstsq(x.cpu(), torch.cat(ys, dim=1).cpu(), rcond=cutoff, driver="gelsd").solution
    found = []
    for of_y in solution.to(x.device).split([y.shape[1] for y in ys], dim=1):
        down = torch.linalg.svd(x @ of_y, full_matrices=False).Vh.T
        found.append(((of_y @ down).T, down))
    return found


class _Update:
    """One layer's update in fp64, in an orthonormal basis Q (out, q) of its range, q = min(r, out)."""

    def __init__(self, name: str, layer: CeraLayer, adapter: str) -> None:
        self.name, self.layer = name, layer
        self.activation = layer.cera_activation[adapter]
        self.up, down = (cast(nn.Linear, of[adapter]).weight.detach() for of in (layer.cera_up, layer.cera_down))
        self.basis, right = torch.linalg.qr(down.double())
        self.right = right * layer.scaling[adapter]

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's input (n, in) fp64 -> its update (n, q): times ``basis.T``, what CeRA adds."""
        return self.activation(x @ self.up.double().T) @ self.right.T


@torch.no_grad()
def _fit(
    model: nn.Module, updates: list[_Update], fit: list[Batch], held: list[Batch], rank: int | None
) -> tuple[list[LinearizedLayer], tuple[int, int]]:
    """The stand-ins of some layers, and the number of tokens fitted to and held out."""
    streams: dict[tuple[_Update, ...], SpectrumAccumulator] = {}

    def stream(sharing: tuple[_Update, ...], x: Tensor) -> None:
        if sharing not in streams:
            streams[sharing] = SpectrumAccumulator(", ".join(update.name for update in sharing))
        streams[sharing].update(torch.cat([x, *(update(x) for update in sharing)], dim=-1))

    tokens = _each_input(model, fit, updates, stream)
    fitted: dict[str, _Fitted] = {}
    for sharing, accumulator in streams.items():
        assert accumulator.factor is not None
        x, *ys = accumulator.factor.split([sharing[0].layer.in_features, *(len(u.right) for u in sharing)], dim=-1)
        for update, y, (up, down) in zip(sharing, ys, least_squares(x, *ys), strict=True):
            if update.name in fitted:
                raise ValueError(f"{update.name} shares its input with other layers in some forwards and not in all.")
            fitted[update.name] = _Fitted(update, up, down, min(rank or len(up), len(up)), x, y)
    silent = [update.name for update in updates if update.name not in fitted]
    if silent:
        raise ValueError(f"{', '.join(silent)}: no token of the data passes here.")

    def measure(sharing: tuple[_Update, ...], x: Tensor) -> None:
        for update in sharing:
            fitted[update.name].measure(x, update(x))

    held_tokens = _each_input(model, held, updates, measure)
    return [fitted[update.name].layer() for update in updates], (tokens, held_tokens)


class _Fitted:
    """A layer's linear map, and what it leaves of the update on held-out tokens.

    Args:
        update: The layer's.
        up, down: (k, in) and (q, k), of ``least_squares``.
        rank: Of the LoRA, at most k.
        x, y: The triangular factor of the inputs (m, in) and updates (m, q) that they were fitted to.
    """

    def __init__(self, update: _Update, up: Tensor, down: Tensor, rank: int, x: Tensor, y: Tensor) -> None:
        self.update, self.up, self.down, self.rank = update, up, down, rank
        self.kept = _share(self._off(x, y, rank), y.square().sum())
        self.energy = self.off = self.off_any_rank = y.new_zeros(())

    def _off(self, x: Tensor, y: Tensor, rank: int) -> Tensor:
        return (y - x @ self.up[:rank].T @ self.down[:, :rank].T).square().sum()

    def measure(self, x: Tensor, y: Tensor) -> None:
        """Add held-out tokens: inputs (n, in) and updates (n, q)."""
        self.energy = self.energy + y.square().sum()
        self.off = self.off + self._off(x, y, self.rank)
        self.off_any_rank = self.off_any_rank + self._off(x, y, len(self.up))

    def layer(self) -> LinearizedLayer:
        """What is kept of all this."""
        return LinearizedLayer(
            self.update.name,
            self.rank,
            self.kept,
            _share(self.off, self.energy),
            _share(self.off_any_rank, self.energy),
            self.up[: self.rank].float().cpu(),
            (self.update.basis @ self.down[:, : self.rank]).float().cpu(),
        )


def _share(residual: Tensor, energy: Tensor) -> float:
    """The share that is kept; of an update that is zero, all."""
    return 1.0 if energy == 0 else 1.0 - (residual / energy).item()


def _each_input(
    model: nn.Module,
    batches: list[Batch],
    updates: list[_Update],
    receive: Callable[[tuple[_Update, ...], Tensor], None],
) -> int:
    """Run the model; hand each input (n, in) fp64, without padding, to ``receive`` with the layers that share it.

    Returns:
        The number of tokens.
    """
    device = next(model.parameters()).device
    sharing: list[_Update] = []  # layers that have had the input ``waiting``, one after the other
    waiting: Tensor | None = None
    mask: Tensor | None = None
    tokens = 0

    def hand_over() -> None:
        nonlocal waiting
        if waiting is None:
            return
        if mask is not None and mask.shape != waiting.shape[:-1]:
            raise ValueError(
                f"{sharing[0].name}: its input is {tuple(waiting.shape)} on a batch of {tuple(mask.shape)} tokens, so "
                "that padding cannot be told from tokens. Layers inside experts cannot be linearized."
            )
        x = waiting.flatten(0, -2) if mask is None else waiting[mask]
        receive(tuple(sharing), x.double())
        waiting = None
        sharing.clear()

    def hear(update: _Update, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal waiting
        if args[0] is not waiting:
            hand_over()
            waiting = args[0]
        sharing.append(update)

    handles = [update.layer.register_forward_pre_hook(partial(hear, update)) for update in updates]
    try:
        for batch in batches:
            names = ("input_ids", "attention_mask", "position_ids")
            inputs = {name: batch[name].to(device) for name in names if name in batch}
            marked = batch.get("tokens", batch.get("attention_mask"))
            mask = None if marked is None else marked.to(device).bool()
            tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            model(**inputs, logits_to_keep=1)
            hand_over()
    finally:
        for handle in handles:
            handle.remove()
    return tokens


def can_linearize(config: PeftConfig) -> bool:
    """Whether ``config`` is CeRA beside linear layers: no module-level branch, no experts, no hybrid with DoRA."""
    if not isinstance(config, CeraConfig):
        return False
    return config.granularity == "weight" and not config.target_parameters and not config.use_dora


def _check(model: nn.Module, adapter: str) -> CeraConfig:
    """The adapter's configuration; raises ``ValueError`` if it cannot be linearized."""
    if not isinstance(model, PeftModel):
        raise ValueError(f"model must be a PeftModel with a CeRA adapter, got a {type(model).__name__}.")
    if adapter not in model.peft_config:
        raise ValueError(f"adapter {adapter!r} is not in the model, which has {', '.join(model.peft_config)}.")
    config = model.peft_config[adapter]
    if not isinstance(config, CeraConfig):
        raise ValueError(
            f"adapter {adapter!r} is a {type(config).__name__}. What is linearized is CeRA beside linear layers "
            "(cera.CeraConfig with granularity='weight')."
        )
    if not can_linearize(config):
        raise ValueError(
            f"adapter {adapter!r} has granularity={config.granularity!r}, use_dora={config.use_dora} and "
            f"target_parameters={config.target_parameters}. What is linearized is CeRA beside linear layers only: "
            "granularity='weight', no hybrid and no experts."
        )
    if model.active_adapters != [adapter]:
        raise ValueError(
            f"adapter {adapter!r} must be the only active one, which {', '.join(model.active_adapters)} "
            f"is: call model.set_adapter({adapter!r}) first."
        )
    return config


def _lora_config(model: nn.Module, config: CeraConfig, layers: list[LinearizedLayer]) -> LoraConfig:
    rank = max(layer.rank for layer in layers)
    narrower = {layer.name: layer.rank for layer in layers if layer.rank != rank}
    adapted = {layer.name for layer in layers}
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=narrower,
        alpha_pattern=dict(narrower),
        target_modules=_targets(model, adapted),
        modules_to_save=config.modules_to_save,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
    )


def _targets(model: nn.Module, adapted: set[str]) -> list[str]:
    """The last parts of the names if they mean the adapted layers and no others, else the names."""
    ends = {name.rpartition(".")[2] for name in adapted}
    meant = {name for name in (base_name(name) for name, _ in model.named_modules()) if name.rpartition(".")[2] in ends}
    return sorted(ends if meant == adapted else adapted)


def _saved_whole(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    tensors = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {name: tensor for name, tensor in tensors.items() if ".cera_" not in name}


def _percent(of: LinearizedLayer | Linearization) -> str:
    return f"{100 * of.kept:>10.3f} {100 * of.held_out:>9.3f} {100 * of.any_rank:>9.3f}"
