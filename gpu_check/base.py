"""A base with random weights, and conversations to train it on: nothing is downloaded.

python -m gpu_check.base DIRECTORY --size 1b --device cuda
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cera.data import ReasoningGymWordProblems
from cera.pretraining.corpus import conversations, train_tokenizer

SIZES = {
    "1b": {  # that of Llama-3.2-1B: 1.24 billion parameters
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128_256,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    },
}
"""Shapes of the base."""

TOKENS = 1024
"""Vocabulary of the tokenizer; a larger one of the model is not used up."""

PROBLEMS = 2000
"""Number of conversations."""


def save_base(folder: Path, size: str, device: str, dtype: torch.dtype = torch.bfloat16, std: float = 0.02) -> None:
    """Save a Llama with random weights, the same ones each time on a device, and a tokenizer with a chat template.

    Args:
        folder: The directory.
        size: Name of ``SIZES``.
        device: Device on which the weights are drawn.
        dtype: Data type of the weights.
        std: Standard deviation of the weights.
    """
    tokenizer = train_tokenizer(conversations([ReasoningGymWordProblems(size=200)], seed=0), TOKENS, positions=4096)
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size],
        max_position_embeddings=4096,
        initializer_range=std,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_conversations(file: Path) -> None:
    """Write word problems with worked solutions in the format of GSM8K: ``question`` and ``answer`` a line."""
    rows = ReasoningGymWordProblems(size=PROBLEMS).load()
    file.write_text("".join(json.dumps({name: row[name] for name in ("question", "answer")}) + "\n" for row in rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the base and the file ``train.jsonl`` into a directory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    options = parser.parse_args(arguments)
    save_base(options.directory, options.size, options.device)
    save_conversations(options.directory / "train.jsonl")


if __name__ == "__main__":
    main()
