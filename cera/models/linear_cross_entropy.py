"""The loss of a frozen output head a chunk of tokens at a time, so that the logits of all of them are never there."""

from collections.abc import Callable
from typing import Any, cast

import torch
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 256
"""Tokens whose logits are in memory at a time: enough that the product with the head is as fast as of all at once."""


def linear_cross_entropy(hidden: Tensor, head: nn.Linear, targets: Tensor, chunk: int = CHUNK) -> Tensor:
    """``cross_entropy(head(hidden), targets)`` of each token, in memory for ``chunk`` tokens' logits.

    The gradient of a token's loss for its own hidden state needs nothing of what comes after it but a factor, so it is
    computed along with the loss, while the logits are there, and nothing is computed twice.

    Args:
        hidden: What the head reads, (n, d).
        head: Without trainable parameters, with V outputs. If ZeRO-3 has partitioned it, it is gathered once, so all
            ranks must call this.
        targets: Token ids, (n,).
        chunk: Tokens at a time.

    Returns:
        fp32 losses in nats, (n,).
    """
    return cast(Callable[..., Tensor], _LinearCrossEntropy.apply)(hidden, head, targets, chunk)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: nn.Linear, targets: Tensor, chunk: int) -> Tensor:
        losses, gradients = [], []
        with gather_params_ctx(list(head.parameters()), modifier_rank=None):
            for states, wanted in zip(hidden.detach().split(chunk), targets.split(chunk), strict=True):
                logits = F.linear(states, head.weight, head.bias)  # not the module: ZeRO-3 would partition it after
                likelihoods = F.log_softmax(logits.float(), dim=-1)
                losses.append(-likelihoods.gather(1, wanted[:, None])[:, 0])
                if ctx.needs_input_grad[0]:  # by hand: counters of operations cannot follow autograd inside of autograd
                    minus_one = likelihoods.new_full((len(wanted), 1), -1)
                    slope = likelihoods.exp_().scatter_add_(1, wanted[:, None], minus_one).to(logits.dtype)
                    gradients.append((slope @ head.weight.to(logits.dtype)).to(hidden.dtype))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return (gradients * factors[:, None]).to(gradients.dtype), None, None, None


def ends_in_its_head(skeleton: nn.Module) -> bool:
    """Whether a model's logits are what its head returns, and nothing is done to them (scaled, capped, cast).

    Args:
        skeleton: The model on the meta device, where a forward costs nothing. One whose forward needs values, such as
            the choice of experts in some, is taken for one that does something.
    """
    returned: list[Tensor] = []
    head = cast(Any, skeleton).get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: returned.append(output))
    try:
        ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
        mask = torch.ones(1, 1, 2, 2, dtype=torch.bool, device="meta")  # a whole one: making one looks at values
        logits = skeleton(input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False).logits
    except RuntimeError:  # what torch raises for values that a meta tensor does not have
        return False
    finally:
        handle.remove()
    return len(returned) == 1 and logits is returned[0]
