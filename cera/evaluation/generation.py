"""Greedy answers to single prompts, for looking at what an adapter changed."""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()  # not inference_mode: ZeRO-3 keeps tensors that it gathers here
def generate(model: Any, tokenizer: Any, prompt: str | Tensor, max_new_tokens: int = 200) -> str:
    """The model's greedy continuation of ``prompt``.

    Args:
        model: A transformers causal language model, with or without PEFT adapters, in any mode; evaluated in eval
            mode and put back.
        tokenizer: Its tokenizer. The model stops at its end-of-sequence token, or at one of the model's own.
        prompt: Text that is already rendered with the chat template, or its token ids (n,).
        max_new_tokens: Longest answer, in tokens.

    Returns:
        The answer's text, without special tokens.
    """
    tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"] if isinstance(prompt, str) else prompt.tolist()
    ids = torch.tensor([tokens], device=next(model.parameters()).device)
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    was_training = model.training
    model.eval()
    try:
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.pad_token_id,
        )
    finally:
        model.train(was_training)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
