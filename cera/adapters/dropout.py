"""Dropout whose mask costs little on a CPU."""

import torch
from torch import Tensor, nn

BITS = 16


class Dropout(nn.Dropout):
    """``nn.Dropout`` with a mask that is cheap to draw on a CPU.

    On a CPU ``nn.Dropout`` draws one Bernoulli number after the other, which takes longer than the products of a wide
    branch. This module draws four numbers from each random integer, 16 bits each: p is rounded to a multiple of
    ``2 ** -16``, at least one, and the remaining elements are divided by the exact share that remains, so that the
    expectation is the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the input (any shape, floating) with elements dropped; in eval mode the input itself."""
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        # compiled code calls one opaque operator; without compilation the overhead of that operator is saved
        draw = mask_operator if torch.compiler.is_compiling() else mask
        return input * draw(input.detach(), self.p)


def mask(like: Tensor, p: float) -> Tensor:
    """Return 0 with probability ``p``, in (0, 1), and ``1 / (1 - p)`` otherwise, in the shape and dtype of ``like``."""
    steps = 2**BITS
    dropped = min(max(round(p * steps), 1), steps - 1)
    integers = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    numbers = integers.view(torch.int16)[: like.numel()].view(like.shape)
    lowest = (
        dropped - steps // 2
    )  # the lowest number that is not dropped; clamping to 0 and 1 replaces a comparison, which is slow on a CPU
    survives = numbers.clamp_(lowest - 1, lowest).sub_(lowest - 1)
    return survives.to(like.dtype).mul_(steps / (steps - dropped))


mask_operator = torch.library.custom_op(
    "cera::dropout_mask", mask, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)


@mask_operator.register_fake
def _(like: Tensor, p: float) -> Tensor:
    return like.new_empty(like.shape)
