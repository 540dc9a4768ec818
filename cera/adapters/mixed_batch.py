"""A batch whose rows use different adapters: the branches of one layer as two padded batched products.

PEFT multiplies the rows of each adapter in turn. Here the rows are put into groups of one size, each of one adapter,
and the adapters' weights are stacked, filled with zeros up to the largest rank::

    latent = act(x[order] (groups, rows * length, in) @ up (groups, in, r))
    result[rows] += (latent @ down (groups, r, out))[places]        # s is part of down

The stack is a copy, kept for the next call: ``generate`` makes it once, and not for every token. On a CPU long rows are
computed in blocks of groups that stay in its cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from cera.adapters.activations import ELEMENTWISE, LearnedMix, learned_mix

if TYPE_CHECKING:
    from cera.adapters.layer import BranchLayer

Segment = tuple[int, int, Callable[[Tensor, int, int], Tensor]]
"""First group and the one after the last of those with one activation, which maps the latents of groups i to j."""
BLOCK_BYTES = 2**20
"""Maximum size of a temporary tensor on a CPU, where more than one group is computed at a time."""


class BatchNames(list[str]):
    """The adapter of each row, for one call of ``forward`` or ``generate``, in which adapters do not change."""


@dataclass(frozen=True)
class Rows:
    """Which rows of a batch are computed together: ``groups`` of ``size`` places each.

    Less than half of the places are padding, where they repeat a row of their group, whatever adapters the rows use.

    Attributes:
        groups: Adapter of each group; an adapter with many rows has several.
        size: Number of places of each group.
        order: Row at each place, (groups * size,).
        rows: The rows that use one of these adapters, in the order of their places.
        places: Place of each of ``rows``.
        ends: Number of ``rows`` in all groups before each group, and in all.
    """

    groups: tuple[str, ...]
    size: int
    order: Tensor
    rows: Tensor
    places: Tensor
    ends: tuple[int, ...]

    @classmethod
    def of(cls, names: Sequence[str], adapters: Sequence[str], device: torch.device) -> "Rows":
        """Group the rows of a batch.

        Args:
            names: Adapter of each row.
            adapters: The adapters to group, at least one of which is in ``names``. Groups are in this order.
            device: Device of the result.
        """
        by_adapter = {adapter: [i for i, name in enumerate(names) if name == adapter] for adapter in adapters}
        size = -(-sum(map(len, by_adapter.values())) // len(by_adapter))
        groups: list[str] = []
        order: list[int] = []
        rows: list[int] = []
        places: list[int] = []
        ends = [0]
        for adapter, numbers in by_adapter.items():
            for start in range(0, len(numbers), size):
                group = numbers[start : start + size]
                groups.append(adapter)
                rows += group
                places += range(len(order), len(order) + len(group))
                order += group + group[:1] * (size - len(group))
                ends.append(len(rows))
        indices = [torch.tensor(numbers, device=device) for numbers in (order, rows, places)]
        return cls(tuple(groups), size, indices[0], indices[1], indices[2], tuple(ends))


@dataclass(frozen=True)
class Stack:
    """The weights of a layer's adapters, stacked for the groups of one batch.

    Attributes:
        names: Adapter of each row of the batch.
        state: What the adapters were when they were copied; see ``_state``.
        held: Their modules and weights, so that no others can take their addresses and pass for them.
        looped: The adapters that cannot be grouped, to be computed one after the other.
        rows: The groups; ``None``, as the following, if no adapter can be grouped.
        up: (groups, in, r) with the largest r.
        down: (groups, r, out), times ``s``.
        segments: The activations, in the order of the groups.
    """

    names: Sequence[str]
    state: list[Any]
    held: list[Any]
    looped: tuple[str, ...]
    rows: Rows | None = None
    up: Tensor | None = None
    down: Tensor | None = None
    segments: tuple[Segment, ...] = ()

    def add_to(self, result: Tensor, x: Tensor) -> None:
        """Add the updates of the rows that are grouped to ``result``, in place.

        Args:
            result: Output of the base layer, (batch, ..., out), which nothing else reads.
            x: Input of the layer, (batch, ..., in), in the dtype of ``up`` or within autocast.
        """
        if self.rows is None or self.up is None or self.down is None:
            return
        x = x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)
        groups, size, ends = len(self.up), self.rows.size, self.rows.ends
        group_bytes = size * x.shape[1] * max(self.up.shape[1], self.down.shape[2]) * x.element_size()
        step = max(1, BLOCK_BYTES // max(1, group_bytes)) if x.device.type == "cpu" else groups
        for start in range(0, groups, step):
            stop = min(start + step, groups)
            block = x.index_select(0, self.rows.order[start * size : stop * size])
            latent = torch.bmm(block.view(stop - start, size * x.shape[1], x.shape[2]), self.up[start:stop])
            update = torch.bmm(self._activate(latent, start, stop), self.down[start:stop])
            update = update.view(len(block), *result.shape[1:])
            used = slice(ends[start], ends[stop])
            if used.stop - used.start < len(block):
                update = update.index_select(0, self.rows.places[used] - start * size)
            result.index_add_(0, self.rows.rows[used], update.to(result.dtype))

    def _activate(self, latent: Tensor, start: int, stop: int) -> Tensor:
        """Return the activated latents of the groups from ``start`` to before ``stop``."""
        parts = [
            act(latent[max(first, start) - start : min(last, stop) - start], max(first, start), min(last, stop))
            for first, last, act in self.segments
            if first < stop and last > start
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


_STACKS: "WeakKeyDictionary[nn.Module, Stack]" = WeakKeyDictionary()  # not on the layers, which are copied and pickled
register_optimizer_step_post_hook(lambda *_: _STACKS.clear())  # fused optimizers change weights without counting it


def forget(layer: nn.Module) -> None:
    """Drop the stack of a layer, if it has one."""
    _STACKS.pop(layer, None)


def stack_for(layer: "BranchLayer", x: Tensor, result: Tensor, names: Sequence[str]) -> Stack | None:
    """Return the stack of a layer for a batch; ``None`` if its adapters are to be computed one after the other.

    That is so where a gradient is asked for, since the stack is a copy, and within ``torch.compile``. ``Stack.looped``
    has the adapters that are hybrids with DoRA, have biases, hooks or an activation that is not in ``ELEMENTWISE``,
    drop units, or have weights of another dtype or device than the first.

    A stack is made anew after an optimizer step, ``train()`` or a move, and when a weight has another address or
    version, which PyTorch counts; this is checked once for each ``BatchNames``. A value written to ``weight.data`` in
    eval mode is not counted: call ``forget`` then.

    Args:
        layer: The layer.
        x: Its input, (batch, ..., in).
        result: Output of its base layer.
        names: Adapter of each row.
    """
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and (x.requires_grad or result.requires_grad)):
        return None
    stack = _STACKS.get(layer)
    if stack is not None and stack.names is names and isinstance(names, BatchNames):
        return stack
    adapters = sorted(layer.branch_up._modules.keys() & set(names))
    if torch.is_grad_enabled() and any(p.requires_grad for name in adapters for p in _parameters(layer, name)):
        return None
    with torch.inference_mode(False), torch.no_grad():
        stack = _STACKS[layer] = _build(layer, names, adapters, stack)
    return stack


def _build(layer: "BranchLayer", names: Sequence[str], adapters: list[str], old: Stack | None) -> Stack:
    """Return the stack for a batch: the ``old`` one, or its weights, where these are still right."""
    state, names = _state(layer, adapters), names if isinstance(names, BatchNames) else tuple(names)
    if old is not None and old.state != state:
        old = None
    if old is not None and list(old.names) == list(names):
        return replace(old, names=names)
    grouped = [name for name in adapters if _can_be_grouped(layer, name)]
    if grouped:
        first = _parameters(layer, grouped[0])[0]
        alike = (first.dtype, first.device)
        grouped = [n for n in grouped if all((p.dtype, p.device) == alike for p in _parameters(layer, n))]
    looped = tuple(name for name in adapters if name not in grouped)
    held = [(_parts(layer, name), [(p, p.detach()) for p in _parameters(layer, name)]) for name in adapters]
    stack = Stack(names, state, held, looped)
    if not grouped:
        return stack
    activations = {name: layer.branch_activation[name] for name in grouped}
    grouped.sort(key=lambda name: repr(activations[name]))
    rows = Rows.of(names, grouped, first.device)
    if old is not None and old.rows is not None and old.rows.groups == rows.groups:
        return replace(old, names=names, rows=rows)
    r = max(layer.r[name] for name in grouped)
    up = first.new_zeros(len(rows.groups), layer.in_features, r)
    down = first.new_zeros(len(rows.groups), r, layer.out_features)
    for i, name in enumerate(rows.groups):
        up[i, :, : layer.r[name]] = cast(nn.Linear, layer.branch_up[name]).weight.T
        down[i, : layer.r[name]] = cast(nn.Linear, layer.branch_down[name]).weight.T * layer.scaling[name]
    segments: list[Segment] = []
    for _, group in groupby(rows.groups, key=lambda name: repr(activations[name])):
        members = [activations[name] for name in group]
        begin = segments[-1][1] if segments else 0
        segments.append((begin, begin + len(members), _joint(members, begin)))
    return replace(stack, rows=rows, up=up, down=down, segments=tuple(segments))


def _joint(activations: list[nn.Module], first: int) -> Callable[[Tensor, int, int], Tensor]:
    """Return one function for groups, from ``first`` on, whose activations are alike but for their parameters."""
    if isinstance(activations[0], LearnedMix):
        gammas = torch.stack([cast(LearnedMix, activation).gamma for activation in activations]).unsqueeze(-1)
        return lambda z, start, stop: learned_mix(z, gammas[start - first : stop - first])
    return lambda z, start, stop: activations[0](z)


def _can_be_grouped(layer: "BranchLayer", name: str) -> bool:
    up, activation, dropout, down = parts = _parts(layer, name)
    return (
        name not in layer.branch_magnitude
        and type(activation) in ELEMENTWISE
        and all(type(linear) is nn.Linear and linear.bias is None for linear in (up, down))
        and not (dropout.training and cast(nn.Dropout, dropout).p > 0)
        and not any(_is_hooked(part) for part in parts)
        and not any(weight.is_inference() for weight in _parameters(layer, name))  # whose versions are not counted
    )


def _is_hooked(part: Any) -> bool:
    """Return whether a call runs more than the module's own ``forward``, as under ZeRO-3 or accelerate's offloading."""
    return bool(part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__)


def _parts(layer: "BranchLayer", name: str) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """Return ``W_up``, activation, dropout and ``W_down`` of an adapter."""
    branches = (layer.branch_up, layer.branch_activation, layer.branch_dropout, layer.branch_down)
    up, activation, dropout, down = (cast(nn.Module, branch._modules[name]) for branch in branches)
    return up, activation, dropout, down


def _parameters(layer: "BranchLayer", name: str) -> list[nn.Parameter]:
    """Return the parameters of an adapter, those of ``W_up`` first."""
    return [p for part in _parts(layer, name) for p in part._parameters.values() if p is not None]


def _state(layer: "BranchLayer", adapters: Sequence[str]) -> list[Any]:
    """Return all that a stack of these adapters depends on, in values that are fast to compare."""
    branches = [branch._modules for branch in (layer.branch_up, layer.branch_activation, layer.branch_down)]
    dropouts, magnitude, state = layer.branch_dropout._modules, layer.branch_magnitude._keys, list[Any]()
    for name in adapters:
        state += (name, layer.scaling[name], name in magnitude, cast(Any, dropouts[name]).training)
        for branch in branches:
            part: Any = branch[name]
            state += (id(part), _is_hooked(part))
            for weight in part._parameters.values():
                if weight is not None and not weight.is_inference():
                    state += (id(weight), weight.data_ptr(), weight._version)
    return state
