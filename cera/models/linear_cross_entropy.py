"""The loss of a frozen output head a chunk of tokens at a time, so that the logits of all of them are never there."""

from collections.abc import Callable
from typing import Any, cast

import torch
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 256
"""Number of tokens whose logits are in memory at a time; large enough that chunking the head costs no time."""


def linear_cross_entropy(hidden: Tensor, head: nn.Linear, targets: Tensor, chunk: int = CHUNK) -> Tensor:
    """Return ``cross_entropy(head(hidden), targets)`` per token, holding the logits of only ``chunk`` tokens at a time.

    The gradient of a token's loss with respect to its hidden state depends on later computations only by a factor. It
    is computed along with the loss, while the logits exist, so nothing is computed twice.

    Args:
        hidden: Hidden states that the head reads, (n, d).
        head: Output head (d -> V) without trainable parameters. If ZeRO-3 has partitioned it, it is gathered once, so
            all ranks must call this function.
        targets: Token ids, (n,).
        chunk: Number of tokens whose logits are computed at a time.

    Returns:
        fp32 losses in nats, (n,).
    """
    return cast(Callable[..., Tensor], _LinearCrossEntropy.apply)(hidden, head, targets, chunk)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: nn.Linear, targets: Tensor, chunk: int) -> Tensor:
        losses, gradients = [], []
        with gather_params_ctx(list(head.parameters()), modifier_rank=None):
            for states, expected in zip(hidden.detach().split(chunk), targets.split(chunk), strict=True):
                logits = F.linear(
                    states, head.weight, head.bias
                )  # calling the module would let ZeRO-3 partition it again
                likelihoods = F.log_softmax(logits.float(), dim=-1)
                losses.append(-likelihoods.gather(1, expected[:, None])[:, 0])
                if ctx.needs_input_grad[0]:  # autograd within autograd would escape FLOP counters
                    minus_ones = likelihoods.new_full((len(expected), 1), -1)
                    logit_gradient = likelihoods.exp_().scatter_add_(1, expected[:, None], minus_ones).to(logits.dtype)
                    gradients.append((logit_gradient @ head.weight.to(logits.dtype)).to(hidden.dtype))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return (gradients * factors[:, None]).to(gradients.dtype), None, None, None


def ends_in_its_head(skeleton: nn.Module) -> bool:
    """Return whether a model's logits are its head's output, which is not scaled, capped or cast afterwards.

    Args:
        skeleton: The model on the meta device, where a forward costs nothing. A model whose forward depends on values,
            as some choices of experts do, is reported as ``False``.
    """
    returned: list[Tensor] = []
    head = cast(Any, skeleton).get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: returned.append(output))
    try:
        ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
        mask = torch.ones(
            1, 1, 2, 2, dtype=torch.bool, device="meta"
        )  # explicit, because transformers inspects values to build one
        logits = skeleton(input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False).logits
    except RuntimeError:  # torch raises this when a meta tensor's values are read
        return False
    finally:
        handle.remove()
    return len(returned) == 1 and logits is returned[0]
