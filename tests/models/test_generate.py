"""Greedy generation from one prompt; tests/evaluation/test_generation.py compares it with batched generation."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from cera.models.generate import encode, generate


@pytest.fixture(scope="module")
def model(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)


def test_mode_and_settings_of_the_model_are_ignored_and_restored(model, tokenizer):
    expected = generate(model.eval(), tokenizer, "The rain in Spain", 6)
    model.train()
    model.lm_head.eval()
    model.generation_config.do_sample = True
    model.generation_config.temperature = 30.0
    model.generation_config.suppress_tokens = list(range(1000))
    settings = copy.deepcopy(vars(model.generation_config))
    assert generate(model, tokenizer, "The rain in Spain", 6) == expected
    assert vars(model.generation_config) == settings
    assert model.training
    assert not model.lm_head.training


def test_prompts_that_leave_no_room_are_refused(model, tokenizer):
    room = model.config.max_position_embeddings - 10
    with pytest.raises(ValueError, match=rf"{room + 1} tokens.* max_new_tokens=10 .* {room + 10} positions"):
        generate(model, tokenizer, torch.ones(room + 1, dtype=torch.long), 10)
    with pytest.raises(ValueError, match="no tokens"):
        generate(model, tokenizer, "")


@pytest.mark.parametrize("unit", ["word ", "a", "1"])
def test_a_prompt_is_split_only_as_far_as_it_is_of_use(tokenizer, unit):
    seen = []

    def watched(text, **options):
        seen.append(len(text))
        return tokenizer(text, **options)

    assert encode(watched, unit * 100, limit=200) == encode(tokenizer, unit * 100)
    assert len(encode(watched, unit * 10**6, limit=200)) > 200
    assert max(seen) < 100_000
