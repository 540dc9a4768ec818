"""The loss in chunks is the loss, and so is its gradient; and it is taken where the head ends the model."""

import pytest
import torch
from fitting import fit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
)

from cera.models.linear_cross_entropy import CHUNK, ends_in_its_head, linear_cross_entropy
from cera.training.module import CausalLM


def made(n: int, dtype: torch.dtype, bias: bool = False):
    torch.manual_seed(n)
    head = nn.Linear(8, 50, bias=bias, dtype=dtype).requires_grad_(False)
    return torch.randn(n, 8, dtype=dtype, requires_grad=True), head, torch.randint(50, (n,))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 40), chunk=st.integers(1, 45), bias=st.booleans())
def test_loss_and_gradient_are_those_of_the_whole_logits(dtype, tolerance, n, chunk, bias):
    hidden, head, targets = made(n, dtype, bias)
    factors = torch.rand(n)
    chunked = linear_cross_entropy(hidden, head, targets, chunk)
    (gradient,) = torch.autograd.grad((chunked * factors).sum(), hidden)
    expected = F.cross_entropy(head(hidden).float(), targets, reduction="none")
    (reference,) = torch.autograd.grad((expected * factors).sum(), hidden)
    assert chunked.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.allclose(chunked, expected, atol=tolerance)
    assert torch.allclose(gradient, reference, atol=tolerance)


def test_no_more_than_a_chunk_of_logits_is_made_and_none_is_kept(monkeypatch):
    hidden, head, targets = made(3 * CHUNK + 5, torch.float32)
    rows, saved = [], []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda states, *weights: rows.append(len(states)) or linear(states, *weights))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        losses = linear_cross_entropy(hidden, head, targets)
    assert rows == [CHUNK] * 3 + [5]
    assert torch.Size([3 * CHUNK + 5, 8]) in saved  # the gradient, which the loss keeps
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, head, targets), losses)


SMALL = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (LlamaConfig, True),
        (MistralConfig, True),
        (Qwen2Config, True),
        (GemmaConfig, True),
        (Phi3Config, True),
        (GPT2Config, True),
        (Gemma2Config, False),  # caps its logits
        (GraniteConfig, False),  # scales them
        (CohereConfig, False),
    ],
)
def test_what_a_model_does_to_its_logits_is_found_without_weights(config, plain):
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config(**SMALL))
    assert ends_in_its_head(skeleton) is plain


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16, torch.float16])
def test_the_precision_that_a_trainer_makes_the_default_changes_nothing(default):
    """Under bf16-true new tensors are bf16, while a skeleton has the dtype of its configuration."""
    for config in (LlamaConfig(**SMALL, dtype="float32"), LlamaConfig(**SMALL, dtype="bfloat16")):
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
        before = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            assert ends_in_its_head(skeleton)
        finally:
            torch.set_default_dtype(before)


def test_fifty_steps_are_those_of_the_whole_logits(tiny_llama, tmp_path, monkeypatch):
    from command_line import losses

    options = {"max_steps": 50, "val_check_interval": 25}
    fit(tiny_llama, tmp_path / "chunks", [], **options)
    monkeypatch.setattr(CausalLM, "head_is_last", False)
    fit(tiny_llama, tmp_path / "whole", [], **options)
    for column in ("train/loss", "val/perplexity"):
        chunks, whole = losses(tmp_path / "chunks", column), losses(tmp_path / "whole", column)
        assert chunks.keys() == whole.keys()
        assert list(chunks.values()) == pytest.approx(list(whole.values()), rel=2e-3)
    assert len(losses(tmp_path / "chunks")) == 50
