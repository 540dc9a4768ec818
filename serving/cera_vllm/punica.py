"""The wrappers through which vLLM's layers add their adapters' updates, with an activation between the products."""

import functools
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
    """The wrapper as one layer sees it, which adds the layer's own gammas to each call.

    Args:
        wrapper: The wrapper that all layers share.
        slices: Number of layers that are packed into this one, such as 3 in qkv.
        slots: Number of adapters that are active at a time.
    """

    def __init__(self, wrapper: PunicaWrapperBase, slices: int, slots: int) -> None:
        self.wrapper = wrapper
        self.gammas = torch.zeros(slices, slots, device=wrapper.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapper, name)

    def add_lora_linear(self, *args: Any, **kwargs: Any) -> Any:
        """Add the updates of a layer; see ``PunicaWrapperBase.add_lora_linear``."""
        return self.wrapper.add_lora_linear(*args, gammas=self.gammas, **kwargs)

    def add_expand(self, *args: Any, **kwargs: Any) -> Any:
        """Add the updates of latents that were gathered or reduced; see ``PunicaWrapperBase.add_expand``."""
        return self.wrapper.add_expand(*args, gammas=self.gammas, **kwargs)


class Segment(NamedTuple):
    """The tokens of one adapter in a batch.

    Attributes:
        slot: The slot of the adapter's weights.
        rows: Their places in the batch: a slice if they lie side by side, else indices.
        latents: Their places in a buffer of latents, which is in the order of adapters.
    """

    slot: int
    rows: slice | Tensor
    latents: slice


def segments(slots: Tensor) -> list[Segment]:
    """Group the tokens of a batch by adapter; those of the base model (slot -1) are in no segment.

    Args:
        slots: Each token's slot, (tokens,).
    """
    ordered, order = torch.sort(slots, stable=True)
    present, counts = torch.unique_consecutive(ordered, return_counts=True)
    grouped, start = [], 0
    for slot, count in zip(present.tolist(), counts.tolist(), strict=True):
        rows = order[start : start + count]
        first, last = int(rows[0]), int(rows[-1])
        together = last - first + 1 == count  # the order within a segment is that of the batch
        if slot >= 0:
            places = slice(first, last + 1) if together else rows
            grouped.append(Segment(slot, places, slice(start, start + count)))
        start += count
    return grouped


class SegmentedWrapper(PunicaWrapperCPU):
    """Two products per adapter in a batch, where vLLM's wrapper for CPUs copies an adapter's weights for each token.

    Tokens of the base model have no part in them; in vLLM 0.32 they get the update of the adapter in the last slot.
    CPUs run LoRA without graphs and compilation, so that Python state is read at each step.
    """

    def __init__(self, max_num_batched_tokens: int, max_batches: int, device: Any, **kwargs: Any) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        self._codes = [IDENTITY] * kwargs["lora_config"].max_loras
        self._tokens: list[Segment] = []
        self._samples: list[Segment] = []

    def set_slot(self, slot: int, code: int) -> None:
        """Set the activation of the adapter in ``slot``."""
        self._codes[slot] = code

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Take over which token has which adapter in the next step."""
        super().update_metadata(*args, **kwargs)
        self._tokens = segments(self.token_lora_indices)
        self._samples = segments(self.sampler_indices)

    def add_shrink(self, y: Any, x: Tensor, lora_a_stacked: tuple[Tensor, ...], scale: float, **kwargs: Any) -> None:
        """Write the pre-activations of each slice, (tokens, r) in the order of adapters, to ``y``."""
        x = x.view(-1, x.shape[-1])
        for slot, rows, latents in self._tokens:
            inputs = x[rows]
            for pre_activations, up in zip(y, lora_a_stacked, strict=True):
                pre_activations[latents] = F.linear(inputs.to(up.dtype), up[slot, 0]) * scale

    def add_expand(  # type: ignore[override]  # layers call it through LayerWrapper
        self,
        y: Tensor,
        x: Any,
        lora_b_stacked: tuple[Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        *,
        gammas: Tensor,
        **kwargs: Any,
    ) -> None:
        """Add the updates of pre-activations ``x``, as ``add_shrink`` wrote them, to ``y`` (tokens, out)."""
        y = y.view(-1, y.shape[-1])
        if not add_inputs:
            y.zero_()
        for slot, rows, latents in self._tokens:
            offset = offset_start
            for index, (down, width) in enumerate(zip(lora_b_stacked, output_slices, strict=True)):
                latent = activate(self._codes[slot], x[index][latents], gammas[index, slot])
                _add(y[:, offset : offset + width], rows, F.linear(latent.to(y.dtype), down[slot, 0].to(y.dtype)))
                offset += width

    def add_lora_embedding(self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add the updates of a LoRA on embeddings, whose rows of ``A`` are ``x``, to ``y`` (tokens, out)."""
        for slot, rows, _ in self._tokens:
            _add(y, rows, F.linear(x[rows], lora_b_stacked[slot, 0]).to(y.dtype))

    def add_lora_logits(
        self, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **kwargs: Any
    ) -> None:
        """Add the updates of a LoRA on the output head to the logits ``y`` (samples, vocabulary)."""
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows, _ in self._samples:
            latent = F.linear(x[rows].to(lora_a_stacked.dtype), lora_a_stacked[slot, 0]) * scale
            update = F.linear(latent, lora_b_stacked[slot, 0]).to(y.dtype)
            width = min(update.shape[1], y.shape[1])  # the two may be padded differently
            _add(y[:, :width], rows, update[:, :width])


def _add(y: Tensor, rows: slice | Tensor, update: Tensor) -> None:
    if isinstance(rows, slice):
        y[rows] += update
    else:
        y.index_add_(0, rows, update)


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

    def add_expand(self, y: Tensor, x: Tensor, *args: Any, gammas: Tensor, **kwargs: Any) -> Any:
        """Add the updates of pre-activations ``x`` (slices, tokens, r) to ``y`` (tokens, out)."""
        tokens = x.shape[1]  # in a graph more than the batch has; what stands there for the others is not used
        by_token = gammas[:, self._token_slots[:tokens]]
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
