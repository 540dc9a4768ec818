"""The wrappers, against each adapter's own formula for each token."""

import types
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from cera_vllm.activations import CODES, activate
from cera_vllm.punica import LayerWrapper, MaskedWrapper, SegmentedWrapper, segments

SLOTS, RANK, IN, OUT = 8, 4, 6, (5, 3)


class MaskedCPU(MaskedWrapper, PunicaWrapperCPU):
    """What comes before a GPU's wrapper, before vLLM's wrapper for CPUs, whose latents are in a tuple."""

    def add_expand(self, y: torch.Tensor, x: tuple[torch.Tensor, ...], *args: Any, **kwargs: Any) -> Any:
        """Add the updates."""
        return super().add_expand(y, torch.stack(x), *args, **kwargs)


def layer(kind: type, tokens: list[int], codes: list[int], adapters: list[int]) -> LayerWrapper:
    """A layer of two slices whose slots hold ``adapters``, in a step in which each token has an adapter or none (0)."""
    config = types.SimpleNamespace(max_loras=SLOTS)
    shared = kind(64, 16, torch.device("cpu"), lora_config=config)
    for slot, code in enumerate(codes):
        shared.set_slot(slot, code)
    shared.update_metadata(LoRAMapping(tuple(tokens), tuple(tokens), is_prefill=True), adapters, SLOTS + 1, 100)
    wrapper = LayerWrapper(shared, len(OUT), SLOTS)
    wrapper.gammas.copy_(torch.linspace(0.2, 1.4, wrapper.gammas.numel()).view_as(wrapper.gammas))
    return wrapper


@pytest.mark.parametrize("kind", [SegmentedWrapper, MaskedCPU])
@pytest.mark.parametrize(
    "tokens",
    [
        [11] * 9,
        [11, 12, 13, 11, 12, 13, 14, 15, 16, 17, 18],
        [18, 17, 16, 15, 14, 13, 12, 11, 18, 17],
        [11, 12, 13, 14, 15, 16, 17, 18],
        [12, 12, 11, 11, 11, 16],
        [12] * 20 + [13] + [14] * 3,
        [13],
    ],
)
def test_each_token_has_the_update_of_its_adapter(kind: type, tokens: list[int]) -> None:
    torch.manual_seed(0)
    adapters = [11, 12, 13, 14, 15, 16, 17, 18]
    codes = [CODES[name] for name in (*CODES, "silu")]
    up = tuple(torch.randn(SLOTS, 1, RANK, IN) for _ in OUT)
    down = tuple(torch.randn(SLOTS, 1, width, RANK) for width in OUT)
    x, y = torch.randn(len(tokens), IN), torch.randn(len(tokens), sum(OUT))
    wrapper = layer(kind, tokens, codes, adapters)
    expected = y.clone()
    for row, adapter in enumerate(tokens):
        slot = adapters.index(adapter)
        for index, columns in enumerate((slice(0, 5), slice(5, 8))):
            latent = activate(codes[slot], F.linear(x[row], up[index][slot, 0]), wrapper.gammas[index, slot])
            expected[row, columns] += down[index][slot, 0] @ latent
    wrapper.add_lora_linear(y, x, up, down, 1.0, OUT)
    torch.testing.assert_close(y, expected)
    assert len(codes) == SLOTS


def test_rows_of_the_base_are_untouched_when_all_slots_are_used() -> None:
    """vLLM 0.32's own wrapper for CPUs gives them the update of the last slot: this is what the plugin repairs."""
    torch.manual_seed(0)
    tokens = [18, 0, 11, 0]
    up = (torch.randn(SLOTS, 1, RANK, IN),) * 2
    down = tuple(torch.randn(SLOTS, 1, width, RANK) for width in OUT)
    x, before = torch.randn(4, IN), torch.randn(4, 8)
    y, stock = before.clone(), before.clone()
    adapters = list(range(11, 19))
    layer(SegmentedWrapper, tokens, [0] * SLOTS, adapters).add_lora_linear(y, x, up, down, 1.0, OUT)
    torch.testing.assert_close(y[[1, 3]], before[[1, 3]], rtol=0, atol=0)
    assert (y[[0, 2]] - before[[0, 2]]).abs().max() > 0.1
    layer(MaskedCPU, tokens, [0] * SLOTS, adapters).add_lora_linear(stock, x, up, down, 1.0, OUT)
    torch.testing.assert_close(stock[[0, 2]], y[[0, 2]])


@pytest.mark.parametrize("rows", [[0, 1], [1, 0, 1]])
def test_embeddings_and_logits_leave_rows_of_the_base_alone(rows: list[int]) -> None:
    torch.manual_seed(0)
    wrapper = layer(SegmentedWrapper, [18 * row for row in rows], [0] * SLOTS, list(range(11, 19)))
    up, down = torch.randn(SLOTS, 1, RANK, IN), torch.randn(SLOTS, 1, 5, RANK)
    x, latent, y = torch.randn(len(rows), IN), torch.randn(len(rows), RANK), torch.randn(len(rows), 5)
    used = torch.tensor(rows, dtype=torch.bool)
    logits, embedded = y.clone(), y.clone()
    wrapper.add_lora_logits(logits, x, up, down, 1.0)
    wrapper.add_lora_embedding(embedded, latent, down, add_input=True)
    torch.testing.assert_close(logits[used], (y + x @ up[-1, 0].T @ down[-1, 0].T)[used])
    torch.testing.assert_close(embedded[used], (y + latent @ down[-1, 0].T)[used])
    for found in (logits, embedded):
        torch.testing.assert_close(found[~used], y[~used], rtol=0, atol=0)


def test_what_is_zero_is_left_out() -> None:
    """The bits follow the weights, and decide what is computed: weights that they do not know of add nothing."""
    torch.manual_seed(0)
    up = tuple(torch.randn(SLOTS, 1, RANK, IN) for _ in OUT)
    down = tuple(torch.randn(SLOTS, 1, width, RANK) for width in OUT)
    x, before = torch.randn(2, IN), torch.randn(2, sum(OUT))
    wrapper = layer(SegmentedWrapper, [11, 14], [CODES["silu"]] * SLOTS, list(range(11, 19)))
    full = before.clone()
    wrapper.add_lora_linear(full, x, up, down, 1.0, OUT)
    kept = down[1][3].clone()
    down[1][3] = 0
    wrapper.set_slot(3, up, down)
    assert wrapper.up == [0xFF, 0xFF]
    assert wrapper.down == [0xFF, 0xF7]
    for weight in (torch.zeros_like(kept), kept):
        down[1][3] = weight
        y = before.clone()
        wrapper.add_lora_linear(y, x, up, down, 1.0, OUT)
        torch.testing.assert_close(y[0], full[0])
        torch.testing.assert_close(y[1, :5], full[1, :5])
        torch.testing.assert_close(y[1, 5:], before[1, 5:], rtol=0, atol=0)
    wrapper.set_slot(3, up, down)
    assert wrapper.down == [0xFF, 0xFF]
    y = before.clone()
    wrapper.add_lora_linear(y, x, up, down, 1.0, OUT)
    torch.testing.assert_close(y, full)


def test_segments() -> None:
    found = segments(torch.tensor([2, -1, 0, 2, 0, 0]))
    assert [segment.slots for segment in found] == [slice(0, 1), slice(2, 3)]
    assert [segment.latents for segment in found] == [slice(1, 4), slice(4, 6)]
    assert found[0].rows.tolist() == [2, 4, 5]
    assert segments(torch.tensor([-1, 3, 3]))[0].rows == slice(1, 3)
    assert segments(torch.tensor([-1, -1])) == []


def test_neighbours_with_few_tokens_are_one_segment() -> None:
    """At most half of the places are padding, and none is shared if one of them has many tokens."""
    (even,) = segments(torch.tensor([1, 2, 3, 1, 2, 3]))
    assert (even.slots, even.rows.tolist(), even.spread) == (slice(1, 4), [0, 3, 1, 4, 2, 5], None)
    (sorted_already,) = segments(torch.tensor([1, 1, 2, 2]))
    assert sorted_already.rows == slice(0, 4)
    (padded,) = segments(torch.tensor([0, 0, 0, 1, 2, 2]))
    assert padded.spread.tolist() == [0, 1, 2, 3, 3, 3, 4, 5, 5]
    assert padded.kept.tolist() == [0, 1, 2, 3, 6, 7]
    assert [segment.slots for segment in segments(torch.tensor([0] * 5 + [1, 2]))] == [slice(0, 2), slice(2, 3)]
    assert len(segments(torch.tensor([0] * 16 + [1] * 16))) == 1
    assert len(segments(torch.tensor([0] * 17 + [1] * 17))) == 2
