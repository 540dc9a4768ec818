"""Shows how far the generation of a batch is, which takes minutes on a CPU."""

from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from cera.progress import StatusBar


class TokenProgress(StoppingCriteria):
    """A bar that counts the tokens of a batch; as a stopping criterion it ends no row.

    Args:
        rows: Number of sequences of the batch.
        max_new_tokens: Maximum number of tokens of each.
        shown: Whether to show the bar.
    """

    def __init__(self, rows: int, max_new_tokens: int, shown: bool) -> None:
        self.bar = StatusBar(None, f"batch of {rows}", "token", total=max_new_tokens, leave=False, disable=not shown)

    def __enter__(self) -> "TokenProgress":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Count one token of each row, and return that no row is ended, (rows,) bool."""
        self.bar.update()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
