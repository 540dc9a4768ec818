"""Greedy generation from one prompt, and what any generation with a transformers model needs.

Example:
    >>> text = generate(model, tokenizer, "The capital of France is", max_new_tokens=8)

Many prompts, sampling and batches are in ``cera.evaluation.generation``.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from cera.models.eval_mode import eval_mode


@torch.no_grad()  # not inference_mode: ZeRO-3 reuses the tensors that it gathers in a forward
def generate(
    model: Any, tokenizer: Any, prompt: str | Tensor, max_new_tokens: int = 200, ends: Collection[int] = ()
) -> str:
    """Return the model's greedy continuation of one prompt.

    Args:
        model: A transformers causal language model, with or without PEFT adapters. It runs in eval mode and is returned
            to its own mode afterwards. Under ZeRO-3 every rank must call this.
        tokenizer: The model's tokenizer. Generation ends at its end-of-sequence token, or at one of the model's.
        prompt: Text already rendered with the chat template, or its token ids (n,).
        max_new_tokens: Maximum number of tokens to generate.
        ends: Ids of further tokens at which generation ends, such as the chat template's end of a turn.

    Returns:
        The generated text, without the prompt and without special tokens.

    Raises:
        ValueError: The prompt is empty, or too long for the model.
    """
    tokens = encode(tokenizer, prompt) if isinstance(prompt, str) else prompt.tolist()
    if not tokens:
        raise ValueError("The prompt has no tokens.")
    if len(tokens) + max_new_tokens > (positions := max_positions(model.config)):
        raise ValueError(
            f"The prompt has {len(tokens)} tokens, which leaves no room for max_new_tokens={max_new_tokens} "
            f"in the model's {positions} positions."
        )
    all_ends = end_tokens(model.generation_config, tokenizer) | set(ends)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([tokens], device=next(model.parameters()).device)
    with generation_mode(model):
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(all_ends) or None,
            pad_token_id=min(all_ends, default=0) if pad is None else pad,
            use_cache=True,
        )
    return tokenizer.decode(output[0, len(tokens) :], skip_special_tokens=True)


@contextmanager
def generation_mode(model: Any) -> Iterator[None]:
    """Put ``model`` in eval mode with transformers' default generation settings, and restore both afterwards.

    A model's own ``generation_config`` may ask for sampling and penalties, with which greedy is not greedy.
    """
    settings = vars(model.generation_config)  # changed in place, because a PEFT model reads its base's object
    saved = dict(settings)
    with eval_mode(model):
        settings.clear()
        settings.update(vars(GenerationConfig()))
        try:
            yield
        finally:
            settings.clear()
            settings.update(saved)


def encode(tokenizer: Any, prompt: str, limit: float = math.inf) -> list[int]:
    """Return the token ids of a rendered prompt, to which no special tokens are added.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: The text.
        limit: Number of tokens beyond which a prompt is of no use. Of a longer one only some more are returned, so that
            memory and time are bounded.
    """
    size = 64 * (limit + 1)
    while size < len(prompt):
        ids = tokenizer(prompt[: int(size)], add_special_tokens=False)["input_ids"]
        if len(ids) > limit:
            return ids
        size *= 4
    return tokenizer(prompt, add_special_tokens=False)["input_ids"]


def end_tokens(generation_config: Any, tokenizer: Any) -> set[int]:
    """Return the ids of the tokens that end an answer: the tokenizer's and those of the model's generation config."""
    ends = generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}


def max_positions(config: Any) -> float:
    """Return the number of positions of a model with this transformers configuration; infinite if it names none."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf
