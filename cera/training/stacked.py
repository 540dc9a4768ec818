"""Several adapters in one pass over one copy of their base: one base product for all rows, batched ones for branches.

    model = StackedModel(peft_model, chunked=True)  # any one of the models, whose bases share their weights
    losses, numbers = model.losses([Share(branches(peft_model), batch, lane.random_numbers), ...])

The rows of a pass are those of the adapters' micro-batches one after the other, each with as many rows and positions as
the largest. A padded position is of a document without labels, as in ``cera.data.packing``. Rows do not depend on each
other, so neither do the losses of the adapters nor their gradients.

Masks of dropout are those of a run of its own: they are drawn from the adapter's own random numbers, in the order of
the layers, in the shape of its own micro-batch, by its own dropout module.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from cera.adapters import CeraLayer
from cera.adapters.gaussian_lora import GaussianLoraLinear
from cera.data.chat import IGNORE
from cera.training import loss
from cera.training.precision import adapter_autocast

ADAPTER = "default"


def shared_copy(model: nn.Module, replaced: dict[nn.Module, nn.Module] | None = None) -> Any:
    """Return a copy of a model's modules that shares its parameters and buffers.

    Args:
        model: The model.
        replaced: Modules that others take the place of in the copy.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    memo |= {id(module): other for module, other in (replaced or {}).items()}
    return copy.deepcopy(model, memo)


@dataclass(frozen=True)
class Branch:
    """An adapter beside one linear layer: it adds ``s * W_down(D(act(W_up x)))``, or ``s * W_down(act(W_up D(x)))``.

    Attributes:
        up: ``W_up`` (r, in).
        down: ``W_down`` (out, r).
        dropout: ``D``.
        drops_input: Whether ``D`` acts on the input.
        scaling: ``s``.
        activation: ``act``, without parameters; ``None`` is the identity.
        scales_latent: Whether ``s`` is applied before ``W_down``; it differs by rounding.
    """

    up: Tensor
    down: Tensor
    dropout: nn.Module
    drops_input: bool
    scaling: float
    activation: nn.Module | None = None
    scales_latent: bool = False


def branch_of(layer: Any) -> Branch | None:
    """Return the branch of an adapted layer; ``None`` if it computes anything else."""
    if type(layer) is CeraLayer and ADAPTER not in layer.branch_magnitude:
        up, down = (cast(nn.Linear, part[ADAPTER]) for part in (layer.branch_up, layer.branch_down))
        activation = layer.branch_activation[ADAPTER]
        if up.bias is None and down.bias is None and not any(True for _ in activation.parameters()):
            drops = layer.branch_dropout[ADAPTER], layer.drops_input[ADAPTER]
            return Branch(up.weight, down.weight, *drops, layer.scaling[ADAPTER], activation, scales_latent=True)
    if type(layer) in (lora.Linear, GaussianLoraLinear) and ADAPTER not in layer.lora_variant:
        up, down = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        if up.bias is None and down.bias is None:
            return Branch(up.weight, down.weight, layer.lora_dropout[ADAPTER], True, layer.scaling[ADAPTER])
    return None


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return the adapted layers of a PEFT model by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}


def branches(model: Any) -> dict[str, Branch] | None:
    """Return the branch of each adapted layer by name; ``None`` if the model trains anything else than these."""
    found = {name: branch_of(layer) for name, layer in adapted_layers(model).items()}
    known = {name: branch for name, branch in found.items() if branch is not None}
    weights = {id(weight) for branch in known.values() for weight in (branch.up, branch.down)}
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if known.keys() != found.keys() or weights != trained:
        return None
    return None if isinstance(model.get_output_embeddings(), BaseTunerLayer) else known


@dataclass(frozen=True)
class Share:
    """An adapter's share of a pass.

    Attributes:
        branches: Its branches by layer.
        batch: Its micro-batch: ``input_ids``, ``labels`` and ``position_ids``, each (b, l).
        random_numbers: Context in which torch's random numbers are the adapter's own.
    """

    branches: Mapping[str, Branch]
    batch: dict[str, Any]
    random_numbers: Callable[[], AbstractContextManager]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and positions of the micro-batch."""
        rows, length = self.batch["input_ids"].shape
        return rows, length


class StackedLayer(nn.Module):
    """A frozen linear layer whose rows are those of several adapters, one after the other.

    Args:
        base_layer: The frozen layer.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.branches: list[Branch] = []
        self.shares: Sequence[Share] = ()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output plus each adapter's update of its own rows.

        Args:
            x: (adapters * b, l, in).

        Returns:
            (adapters * b, l, out), in the dtype of the base layer's output.
        """
        result = self.base_layer(x, *args, **kwargs)
        return result + self._update(x).to(result.dtype)

    def _update(self, x: Tensor) -> Tensor:
        branches, (rows, length, _) = self.branches, x.shape
        up, down = (torch.stack(weights) for weights in zip(*((b.up, b.down) for b in branches), strict=True))
        if x.dtype != up.dtype and not torch.is_autocast_enabled(x.device.type):
            x = x.to(up.dtype)
        x = x.view(len(branches), rows // len(branches) * length, -1)
        if branches[0].drops_input:
            x = self._dropped(x, length)
        latent = torch.bmm(x, up.transpose(1, 2))
        if branches[0].activation is not None:
            latent = branches[0].activation(latent)
        if not branches[0].drops_input:
            latent = self._dropped(latent, length)
        if branches[0].scales_latent:
            latent = self._scaled(latent)
        update = torch.bmm(latent, down.transpose(1, 2))
        if not branches[0].scales_latent:
            update = self._scaled(update)
        return update.view(rows, length, -1)

    def _scaled(self, values: Tensor) -> Tensor:
        """Return the values (adapters, b * l, width) times each adapter's ``s``."""
        scalings = [branch.scaling for branch in self.branches]
        if scalings.count(scalings[0]) < len(scalings):  # a factor in fp32, as a number is; rounded once
            factors = torch.tensor(scalings, dtype=torch.float32, device=values.device).view(-1, 1, 1)
            return (values * factors).to(values.dtype)
        return values if scalings[0] == 1 else values * scalings[0]

    def _dropped(self, values: Tensor, length: int) -> Tensor:
        """Return the values (adapters, b * l, width) times each adapter's mask, which is drawn as it alone would."""
        if all(isinstance(branch.dropout, nn.Identity) or branch.dropout.p == 0 for branch in self.branches):
            return values
        width = values.shape[-1]
        masks = values.new_ones(len(self.branches), values.shape[1] // length, length, width)
        for mask, branch, share in zip(masks, self.branches, self.shares, strict=True):
            rows, positions = share.shape
            with share.random_numbers():
                mask[:rows, :positions] = branch.dropout(values.new_ones(rows, positions, width))
        return values * masks.view_as(values)


class StackedModel:
    """The modules of a base with a ``StackedLayer`` in place of each adapted one.

    Args:
        model: A PEFT model, in training mode, whose adapted layers all have a ``branch_of``.
        chunked: See ``cera.training.loss.answer_nll``.
        autocast: The trainer's precision if the adapters are in fp32 beside a base in half precision; else ``None``.
    """

    def __init__(self, model: Any, chunked: bool, autocast: str | None = None) -> None:
        layers = adapted_layers(model)
        self.layers = {name: StackedLayer(layer.get_base_layer()) for name, layer in layers.items()}
        self.model = shared_copy(model.get_base_model(), {layers[name]: self.layers[name] for name in layers})
        self.chunked = chunked
        self.autocast = autocast

    def losses(self, shares: Sequence[Share]) -> tuple[Tensor, list[int]]:
        """Return the loss of each labelled token (n,), adapter after adapter, and the number of tokens of each."""
        for name, layer in self.layers.items():
            layer.shares, layer.branches = shares, [share.branches[name] for share in shares]
        batch = stack_batches([share.batch for share in shares])
        device = batch["input_ids"].device.type
        try:
            with nullcontext() if self.autocast is None else adapter_autocast(self.autocast, device):
                losses, _ = loss.answer_nll(self._logits, self.model.get_output_embeddings(), batch, self.chunked)
        finally:
            for layer in self.layers.values():  # which would keep adapters that have ended in memory
                layer.shares, layer.branches = (), []
        return losses, [int((share.batch["labels"][:, 1:] != IGNORE).sum()) for share in shares]

    def _logits(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        return self.model(input_ids=input_ids, **kwargs).logits


def stack_batches(batches: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return the micro-batches as one, (adapters * b, l), with as many rows and positions as the largest of each."""
    rows = max(batch["input_ids"].shape[0] for batch in batches)
    length = max(batch["input_ids"].shape[1] for batch in batches)
    padded: dict[str, list[Tensor]] = {"input_ids": [], "labels": [], "position_ids": []}
    for batch in batches:
        below, right = rows - batch["input_ids"].shape[0], length - batch["input_ids"].shape[1]
        for name, values in padded.items():
            values.append(F.pad(batch[name], (0, right, 0, below), value=IGNORE if name == "labels" else 0))
        positions = padded["position_ids"][-1]
        positions[:, length - right :] = torch.arange(right, device=positions.device)  # one more document, from 0 on
        positions[rows - below :] = torch.arange(length, device=positions.device)
    return {name: torch.cat(values) for name, values in padded.items()}
