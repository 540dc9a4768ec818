"""The wrappers through which vLLM's layers add their adapters' updates, with an activation between the products."""

import functools
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname

from cera_vllm.activations import IDENTITY, activate, activate_by_token


class LayerWrapper:
    """The wrapper as one layer sees it, which adds what is the layer's own to each call.

    Args:
        wrapper: The wrapper that all layers share.
        slices: Number of layers that are packed into this one, such as 3 in qkv.
        slots: Number of adapters that are active at a time.

    Attributes:
        gammas: The scalars of learned mixes, (slices, slots).
        up, down: For each slice the slots whose weight is not zero, as bits: an adapter is in most layers a zero.
    """

    def __init__(self, wrapper: PunicaWrapperBase, slices: int, slots: int) -> None:
        self.wrapper = wrapper
        self.gammas = torch.zeros(slices, slots, device=wrapper.device)
        self.up = [2**slots - 1] * slices
        self.down = [2**slots - 1] * slices

    def set_slot(self, slot: int, up: tuple[Tensor, ...], down: tuple[Tensor, ...]) -> None:
        """Look which weights in ``slot`` are zero; ``up`` and ``down`` have those of all slots for each slice."""
        for bits, weights in ((self.up, up), (self.down, down)):
            for index, weight in enumerate(weights):
                bits[index] = bits[index] & ~(1 << slot) | int(weight[slot].any()) << slot

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapper, name)

    def add_lora_linear(self, *args: Any, **kwargs: Any) -> Any:
        """Add the updates of a layer; see ``PunicaWrapperBase.add_lora_linear``."""
        return self.wrapper.add_lora_linear(*args, layer=self, **kwargs)

    def add_shrink(self, *args: Any, **kwargs: Any) -> Any:
        """Compute pre-activations that are gathered or reduced; see ``PunicaWrapperBase.add_shrink``."""
        return self.wrapper.add_shrink(*args, layer=self, **kwargs)

    def add_expand(self, *args: Any, **kwargs: Any) -> Any:
        """Add the updates of what was gathered or reduced; see ``PunicaWrapperBase.add_expand``."""
        return self.wrapper.add_expand(*args, layer=self, **kwargs)


PADDED = 16
"""Most tokens of an adapter in a batch for which it is padded, to be computed together with others."""


class Segment(NamedTuple):
    """The tokens of one adapter in a batch, or of several in neighbouring slots that have few tokens each.

    Attributes:
        slots: The slots of the adapters' weights.
        rows: The tokens' places in the batch: a slice if they lie side by side, else indices.
        latents: Their places among all latents, which are in the order of slots.
        spread: For each of ``size`` places of each slot the token that lies there, counted within the segment: padding
            repeats one. ``None`` if each slot has ``size`` tokens.
        kept: The places that are not padding; ``None`` as ``spread``.
    """

    slots: slice
    rows: slice | Tensor
    latents: slice
    spread: Tensor | None = None
    kept: Tensor | None = None

    @property
    def bits(self) -> int:
        """The slots as bits."""
        return (1 << self.slots.stop) - (1 << self.slots.start)

    def multiply(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return each token's product with the weight of its adapter, (tokens, out).

        Args:
            x: The segment's tokens, (tokens, in).
            weights: Weights of all slots, (slots, 1, out, in).
        """
        weights = weights[self.slots, 0]
        if len(weights) == 1:
            return F.linear(x, weights[0])
        if self.spread is not None:
            x = x[self.spread]
        product = torch.bmm(x.view(len(weights), -1, x.shape[1]), weights.transpose(1, 2)).flatten(0, 1)
        return product if self.kept is None else product[self.kept]


def segments(slots: Tensor) -> list[Segment]:
    """Group the tokens of a batch by adapter; those of the base model (slot -1) are in no segment.

    Args:
        slots: Each token's slot, (tokens,).
    """
    ordered, order = torch.sort(slots, stable=True)
    present, counts = torch.unique_consecutive(ordered, return_counts=True)
    grouped, start = [], 0
    for first, sizes in _neighbours(present.tolist(), counts.tolist()):
        tokens = sum(sizes)
        if first >= 0:
            rows = order[start : start + tokens]
            begin, end = int(rows[0]), int(rows[-1]) + 1  # of one slot, in the order of the batch
            together = end - begin == tokens and (len(sizes) == 1 or bool((rows.diff() == 1).all()))
            spread, kept = _padding(sizes)
            places = slice(begin, end) if together else rows
            grouped.append(
                Segment(slice(first, first + len(sizes)), places, slice(start, start + tokens), spread, kept)
            )
        start += tokens
    return grouped


def _neighbours(slots: list[int], counts: list[int]) -> list[tuple[int, list[int]]]:
    """Return the first slot of each segment, and the numbers of tokens of its slots; at most half is padding."""
    found: list[tuple[int, list[int]]] = []
    for slot, count in zip(slots, counts, strict=True):
        if found and found[-1][0] >= 0:
            first, sizes = found[-1]
            size = max(count, *sizes)
            fits = size <= PADDED and size * (len(sizes) + 1) <= 2 * (sum(sizes) + count)
            if slot == first + len(sizes) and fits:
                sizes.append(count)
                continue
        found.append((slot, [count]))
    return found


def _padding(sizes: list[int]) -> tuple[Tensor | None, Tensor | None]:
    """Return ``Segment.spread`` and ``Segment.kept`` for slots with these numbers of tokens."""
    size = max(sizes)
    if sizes == [size] * len(sizes):
        return None, None
    spread, kept, start = [], [], 0
    for slot, count in enumerate(sizes):
        spread += [start + min(token, count - 1) for token in range(size)]
        kept += [slot * size + token for token in range(count)]
        start += count
    return torch.tensor(spread), torch.tensor(kept)


class SegmentedWrapper(PunicaWrapperCPU):
    """Two products for each segment of a batch, where vLLM's wrapper for CPUs copies an adapter's weights per token.

    Tokens of the base model have no part in them; in vLLM 0.32 they get the update of the adapter in the last slot.
    CPUs run LoRA without graphs and compilation, so that Python state is read at each step.
    """

    def __init__(self, max_num_batched_tokens: int, max_batches: int, device: Any, **kwargs: Any) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        self._codes = [IDENTITY] * kwargs["lora_config"].max_loras
        self._tokens: list[Segment] = []
        self._samples: list[Segment] = []
        self._activated: list[tuple[int, slice, Tensor]] = []

    def set_slot(self, slot: int, code: int) -> None:
        """Set the activation of the adapter in ``slot``."""
        self._codes[slot] = code

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Take over which token has which adapter in the next step, and which latents have one activation."""
        super().update_metadata(*args, **kwargs)
        self._tokens = segments(self.token_lora_indices)
        self._samples = segments(self.sampler_indices)
        ordered = self.token_lora_indices.sort().values
        self._activated, start = [], 0
        codes = [IDENTITY if slot < 0 else self._codes[slot] for slot in ordered.tolist()]
        for code, same in groupby(codes):
            end = start + len(list(same))
            if code != IDENTITY:
                self._activated.append((code, slice(start, end), ordered[start:end, None]))
            start = end

    def add_lora_linear(  # type: ignore[override]  # as add_expand
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        layer: LayerWrapper,
        **kwargs: Any,
    ) -> None:
        """Add the updates of ``x`` (tokens, in) to ``y`` (tokens, out); see ``PunicaWrapperBase.add_lora_linear``."""
        if not any(segment.bits & bits for segment in self._tokens for bits in layer.down):
            return
        up = lora_a_stacked[0]
        latents = torch.zeros(len(lora_a_stacked), len(x), up.shape[2], dtype=up.dtype)
        self.add_shrink(latents, x, lora_a_stacked, scale, layer=layer)
        self.add_expand(y, latents, lora_b_stacked, output_slices, layer=layer, **kwargs)

    def add_shrink(  # type: ignore[override]  # as add_expand
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        scale: float,
        *,
        layer: LayerWrapper,
        **kwargs: Any,
    ) -> None:
        """Write pre-activations to ``y`` (slices, tokens, r), which is zero; tokens are in the order of slots."""
        x = x.view(-1, x.shape[-1])
        for segment in self._tokens:
            inputs = x[segment.rows].to(lora_a_stacked[0].dtype)
            for pre_activations, up, bits in zip(y, lora_a_stacked, layer.up, strict=True):
                if segment.bits & bits:
                    product = segment.multiply(inputs, up)
                    pre_activations[segment.latents] = product if scale == 1 else product * scale

    def add_expand(  # type: ignore[override]  # layers call it through LayerWrapper
        self,
        y: Tensor,
        x: Tensor,
        lora_b_stacked: tuple[Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        *,
        layer: LayerWrapper,
        **kwargs: Any,
    ) -> None:
        """Add the updates of what ``add_shrink`` wrote, ``x`` (slices, tokens, r), to ``y`` (tokens, out)."""
        y = y.view(-1, y.shape[-1])
        if not add_inputs:
            y.zero_()
        latents = self._activate(x, layer.gammas).to(y.dtype)
        for segment in self._tokens:
            offset = offset_start
            for latent, down, width, bits in zip(latents, lora_b_stacked, output_slices, layer.down, strict=True):
                if segment.bits & bits:
                    part = y[:, offset : offset + width]
                    _add_product(part, segment, latent[segment.latents], down.to(y.dtype))
                offset += width

    def _activate(self, x: Tensor, gammas: Tensor) -> Tensor:
        """Return the latents of pre-activations (slices, tokens, r), which may be overwritten."""
        for code, tokens, slots in self._activated:
            latent = activate(code, x[:, tokens], gammas[:, slots])
            if latent.shape == x.shape:
                return latent
            x[:, tokens] = latent
        return x

    def add_lora_embedding(self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add the updates of a LoRA on embeddings, whose rows of ``A`` are ``x``, to ``y`` (tokens, out)."""
        for segment in self._tokens:
            _add_product(y, segment, x[segment.rows], lora_b_stacked)

    def add_lora_logits(
        self, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **kwargs: Any
    ) -> None:
        """Add the updates of a LoRA on the output head to the logits ``y`` (samples, vocabulary)."""
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        width = min(lora_b_stacked.shape[2], y.shape[1])  # the two may be padded differently
        for segment in self._samples:
            latent = segment.multiply(x[segment.rows].to(lora_a_stacked.dtype), lora_a_stacked) * scale
            _add_product(y[:, :width], segment, latent, lora_b_stacked[:, :, :width])


def _add_product(y: Tensor, segment: Segment, x: Tensor, weights: Tensor) -> None:
    """Add the products of a segment's tokens ``x`` (tokens, in) with their weights to ``y`` (batch, out)."""
    x = x.to(weights.dtype)
    if not isinstance(segment.rows, slice):
        y.index_add_(0, segment.rows, segment.multiply(x, weights).to(y.dtype))
    elif y.dtype == weights.dtype and segment.slots.stop - segment.slots.start == 1:
        y[segment.rows].addmm_(x, weights[segment.slots.start, 0].T)
    else:
        y[segment.rows] += segment.multiply(x, weights)


class MaskedWrapper:
    """Comes before a wrapper class of vLLM's, and activates by token: for GPUs, whose kernels skip tokens of the base.

    Everything lies in tensors that keep their place, so that a captured graph reads what is set later.
    """

    def __init__(self, max_num_batched_tokens: int, max_batches: int, device: Any, **kwargs: Any) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)  # type: ignore[call-arg]
        self._slot_codes = torch.zeros(kwargs["lora_config"].max_loras, dtype=torch.long, device=device)
        self._token_codes = torch.zeros(max_num_batched_tokens, dtype=torch.long, device=device)
        self._token_slots = torch.zeros(max_num_batched_tokens, dtype=torch.long, device=device)

    def set_slot(self, slot: int, code: int) -> None:
        """Set the activation of the adapter in ``slot``."""
        self._slot_codes[slot] = code

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Take over which token has which adapter in the next step."""
        super().update_metadata(*args, **kwargs)  # type: ignore[misc]
        slots = self.token_lora_indices  # type: ignore[attr-defined]
        base, slots = slots < 0, slots.clamp_min(0)
        self._token_slots[: len(slots)].copy_(slots)
        self._token_codes[: len(slots)].copy_(self._slot_codes[slots].masked_fill(base, IDENTITY))

    def add_expand(self, y: Tensor, x: Tensor, *args: Any, layer: LayerWrapper, **kwargs: Any) -> Any:
        """Add the updates of pre-activations ``x`` (slices, tokens, r) to ``y`` (tokens, out)."""
        tokens = x.shape[1]  # in a graph more than the batch has; what stands there for the others is not used
        by_token = layer.gammas[:, self._token_slots[:tokens]]
        latent = activate_by_token(self._token_codes[:tokens], x, by_token)
        return super().add_expand(y, latent, *args, **kwargs)  # type: ignore[misc]


@functools.cache
def wrapper_class(base: type[PunicaWrapperBase]) -> type[PunicaWrapperBase]:
    """Return the class that takes the place of vLLM's wrapper class ``base``."""
    if base is PunicaWrapperCPU:
        return SegmentedWrapper
    return type(f"Masked{base.__name__}", (MaskedWrapper, base), {})


def make_wrapper(*args: Any, **kwargs: Any) -> PunicaWrapperBase:
    """Return a new wrapper for the current platform; takes the arguments of vLLM's wrapper classes."""
    return wrapper_class(resolve_obj_by_qualname(current_platform.get_punica_wrapper()))(*args, **kwargs)
