"""Batches of random tokens, as ``cera.spectral`` and ``cera.linearize`` read them."""

import torch
from torch import Tensor


def token_batches(count: int, vocabulary: int, length: int, padded_from: int) -> list[dict[str, Tensor]]:
    """Return batches of three rows, of which the second ends in padding.

    Args:
        count: Number of batches.
        vocabulary: Number of token ids to draw from.
        length: Length of a row.
        padded_from: Position at which the padding of the second row begins.
    """
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(3, length, dtype=torch.bool)
    mask[1, padded_from:] = False
    return [
        {
            "input_ids": torch.randint(0, vocabulary, (3, length), generator=generator),
            "position_ids": torch.arange(length).repeat(3, 1),
            "tokens": mask,
        }
        for _ in range(count)
    ]
