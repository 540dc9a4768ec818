"""Perplexity as a token-weighted mean over a whole dataset and all ranks (paper Section 3.3).

Example:
    >>> perplexity = Perplexity()
    >>> perplexity.update(losses.sum(), losses.numel())  # for each batch
    >>> perplexity.compute()
"""

import torch
from torch import Tensor
from torchmetrics import Metric


class Perplexity(Metric):
    """``exp(sum of the tokens' negative log-likelihoods / number of tokens)``.

    Sums are accumulated in fp64 and reduced over ranks, so that the value does not depend on batching or on the number
    of ranks.
    """

    nll: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("nll", "tokens"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, tokens: int | Tensor) -> None:
        """Add a batch.

        Args:
            nll: Sum of the negative log-likelihoods of its labelled tokens, in nats; a scalar.
            tokens: Number of these tokens.
        """
        self.nll += nll.double()
        self.tokens += tokens

    def compute(self) -> Tensor:
        """Return the perplexity of all batches so far, a scalar; NaN before the first token."""
        return torch.exp(self.nll / self.tokens)
