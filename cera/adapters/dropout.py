"""Dropout whose mask costs little on a CPU."""

import torch
from torch import Tensor, nn

BITS = 16


class Dropout(nn.Dropout):
    """``nn.Dropout``, but for how a CPU draws the mask.

    There ``nn.Dropout`` draws a Bernoulli number for each of the input's, one after the other, which takes longer than
    the products of a wide branch. This takes four from each random integer, 16 bits for one: p is rounded to a multiple
    of ``2 ** -16``, and what is kept is divided by the share that is, so that the expectation is the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input (any shape, floating) with elements dropped, in training mode; the input itself in eval mode."""
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        return input * mask(input.detach(), self.p)


# one operator, in which compiled code does not look, and which it calls once for each call here
@torch.library.custom_op("cera::dropout_mask", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def mask(like: Tensor, p: float) -> Tensor:
    """0 with probability ``p``, in [0, 1), and ``1 / (1 - p)`` else, in the shape and dtype of ``like``."""
    steps = 2**BITS
    dropped = min(round(p * steps), steps - 1)
    integers = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    kept = integers.view(torch.int16)[: like.numel()].view(like.shape) >= dropped - steps // 2
    return kept.to(like.dtype).mul_(steps / (steps - dropped))


@mask.register_fake
def _(like: Tensor, p: float) -> Tensor:
    return like.new_empty(like.shape)
