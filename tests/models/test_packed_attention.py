"""FlashAttention, which takes no mask, is told of the documents of packed rows.

The kernels need a GPU (tests/gpu/test_gpu_packing.py). Here a function with their arguments takes their place.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
from packed_rows import difference, random_packs
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from cera.models.backbone import load_model
from cera.models.packed_attention import add_document_bounds, document_bounds, keep_documents_apart

NAME = "flash_reference"


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attend as FlashAttention does: within (b, heads, l, d) rows or, if it is told of them, within documents."""
    assert mask is None
    key, value = (states.repeat_interleave(module.num_key_value_groups, dim=1) for states in (key, value))
    rows, heads, length, width = query.shape
    bounds = kwargs.get("cu_seq_lens_q", torch.arange(0, rows * length + 1, length)).tolist()
    flat = [states.transpose(0, 1).reshape(heads, rows * length, width) for states in (query, key, value)]
    parts = [
        F.scaled_dot_product_attention(*(states[:, start:end] for states in flat), is_causal=True, scale=scaling)
        for start, end in pairwise(bounds)
    ]
    return torch.cat(parts, dim=1).view(heads, rows, length, width).permute(1, 2, 0, 3), None


@pytest.fixture(scope="module")
def model(tiny_llama):
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    model = load_model(tiny_llama, torch.float32).eval()
    model.config._attn_implementation = NAME  # transformers would look for a kernel of that name
    keep_documents_apart(model)
    return model


def test_bounds_are_the_first_positions_and_the_end() -> None:
    bounds = document_bounds(torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]))
    assert bounds["cu_seq_lens_q"].tolist() == bounds["cu_seq_lens_k"].tolist() == [0, 3, 5, 6, 10]
    assert bounds["cu_seq_lens_q"].dtype == torch.int32  # as the kernels want them
    assert bounds["max_length_q"] == bounds["max_length_k"] == 5


@pytest.mark.parametrize("lengths", [[[5, 9, 3], [11, 2]], [[4, 7]]], ids=["two rows, one padded", "one row"])
def test_documents_of_packed_rows_have_the_losses_that_they_have_alone(model, lengths) -> None:
    packs = random_packs(lengths, 40_000)
    assert difference(model, packs) < 1e-5
    model._forward_pre_hooks.clear()
    try:
        assert difference(model, packs) > 0.01  # transformers alone does not keep them apart
    finally:
        model.register_forward_pre_hook(add_document_bounds, with_kwargs=True)


def test_generation_with_a_cache_is_not_changed(model) -> None:
    arguments = {"position_ids": torch.tensor([[7]]), "past_key_values": object()}
    assert add_document_bounds(model, (), arguments) == ((), arguments)
    assert add_document_bounds(model, (), {"input_ids": torch.tensor([[1]])})[1].keys() == {"input_ids"}


def test_other_kernels_are_left_alone(tiny_llama) -> None:
    assert not load_model(tiny_llama, torch.float32, attn_implementation="sdpa")._forward_pre_hooks
