"""Greedy answers to single prompts, for looking at what an adapter changed."""

from typing import Any

import torch


@torch.no_grad()  # not inference_mode: ZeRO-3 keeps tensors that it gathers here
def generate(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 200) -> str:
    """The model's greedy continuation of ``prompt``.

    Args:
        model: A transformers causal language model, with or without PEFT adapters, in any mode; evaluated in eval
            mode and put back.
        tokenizer: Its tokenizer. The model stops at its end-of-sequence token.
        prompt: Text that is already rendered with the chat template.
        max_new_tokens: Longest answer, in tokens.

    Returns:
        The answer's text, without special tokens.
    """
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    finally:
        model.train(was_training)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
