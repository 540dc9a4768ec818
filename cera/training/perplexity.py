"""Perplexity, the token-weighted mean over a whole dataset and all ranks (paper Section 3.3)."""

import torch
from torch import Tensor
from torchmetrics import Metric


class Perplexity(Metric):
    """``exp(sum of the tokens' negative log-likelihoods / number of tokens)``.

    Sums are kept in fp64 and added over ranks, so the value does not depend on batching or on the number of ranks.
    """

    nll: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("nll", "tokens"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, tokens: int | Tensor) -> None:
        """Add a batch: ``nll`` is the sum over its labelled tokens (nats, scalar), ``tokens`` their number."""
        self.nll += nll.double()
        self.tokens += tokens

    def compute(self) -> Tensor:
        """The perplexity so far, a scalar; NaN before the first token."""
        return torch.exp(self.nll / self.tokens)
