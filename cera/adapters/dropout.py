"""Dropout whose mask costs little on a CPU."""

import torch
from torch import Tensor, nn

BITS = 16


class Dropout(nn.Dropout):
    """``nn.Dropout``, but for how a CPU draws the mask.

    There ``nn.Dropout`` draws a Bernoulli number for each of the input's, one after the other, which takes longer than
    the products of a wide branch. This takes four from each random integer, 16 bits for one: p is rounded to a multiple
    of ``2 ** -16``, at least one, and what is kept is divided by the share kept, so that the expectation is the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input (any shape, floating) with elements dropped, in training mode; the input itself in eval mode."""
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        # compiled code calls one operator, in which it does not look; else the call of an operator in Python is spared
        draw = mask_operator if torch.compiler.is_compiling() else mask
        return input * draw(input.detach(), self.p)


def mask(like: Tensor, p: float) -> Tensor:
    """0 with probability ``p``, in (0, 1), and ``1 / (1 - p)`` else, in the shape and dtype of ``like``."""
    steps = 2**BITS
    dropped = min(max(round(p * steps), 1), steps - 1)
    integers = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    numbers = integers.view(torch.int16)[: like.numel()].view(like.shape)
    lowest = dropped - steps // 2  # of those that are kept; clamped to 0 and 1, as comparing is slow on a CPU
    kept = numbers.clamp_(lowest - 1, lowest).sub_(lowest - 1)
    return kept.to(like.dtype).mul_(steps / (steps - dropped))


mask_operator = torch.library.custom_op(
    "cera::dropout_mask", mask, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)


@mask_operator.register_fake
def _(like: Tensor, p: float) -> Tensor:
    return like.new_empty(like.shape)
