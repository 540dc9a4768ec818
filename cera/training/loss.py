"""The loss of the answer tokens, computed without the logits of the other tokens.

Of a vocabulary's logits at each position most are never used: prompts and padding carry no label. Both ways below
compute logits at labelled positions only; the chunked way also holds only a few hundred tokens' logits at a time.
"""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from cera.data.chat import IGNORE
from cera.models.linear_cross_entropy import linear_cross_entropy
from cera.models.output_head import head_reads

Mean = Literal["step", "micro_batch"]
"""What the mean loss of an optimizer step is over: its tokens, or its micro-batches with the means of theirs."""

Forward = Callable[..., Tensor]
"""Takes ``input_ids`` and ``position_ids`` (batch, length) and returns logits (batch, length, vocabulary)."""


def weights(mean: Mean, tokens: int, step_tokens: int, accumulate: int, ranks: int) -> tuple[float, float]:
    """Return (within, across), by whose product the summed loss of a micro-batch enters the mean of its step.

    ``across`` is the same for all micro-batches of a step, and the mean over ranks is taken of what it weights.

    Args:
        mean: What the mean is over.
        tokens: Number of labelled tokens of the micro-batch, which may be none.
        step_tokens: Number of labelled tokens of the step, over all ranks and micro-batches.
        accumulate: Number of micro-batches of a rank in the step.
        ranks: Number of ranks.
    """
    if mean == "micro_batch":
        return 1 / max(1, tokens), 1 / accumulate
    return 1.0, ranks / step_tokens


def answer_nll(forward: Forward, head: nn.Module, batch: dict[str, Any], chunked: bool) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of each labelled token given the tokens before it.

    Args:
        forward: Runs the model, whose output head is ``head``.
        head: The model's output head.
        batch: ``input_ids``, ``labels`` and ``position_ids``, each (batch, length).
        chunked: Compute the loss from the head's weight, a chunk of tokens at a time. Requires that the head's output
            is what the model returns (``cera.models.linear_cross_entropy.ends_in_its_head``) and that
            ``supports_chunks(head)``.

    Returns:
        The fp32 losses in nats (n,), in the order of the labels, and the mask (batch, length - 1) of the positions
        that they are predicted from.
    """
    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORE
    compute = _chunked if chunked else _selected
    return compute(forward, head, batch, targets[labelled], labelled), labelled


def supports_chunks(head: nn.Module) -> bool:
    """Return whether ``head`` is a plain linear layer, not a quantized one, and is not trained."""
    return type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters())


def _chunked(forward: Forward, head: Any, batch: dict[str, Any], targets: Tensor, labelled: Tensor) -> Tensor:
    states: list[Tensor] = []

    def capture(hidden: Tensor) -> Tensor:
        states.append(hidden)
        return hidden[:, :0]  # the head computes no logits in the forward pass

    with head_reads(head, capture):
        forward(batch["input_ids"], position_ids=batch["position_ids"])
    return linear_cross_entropy(states[0][:, :-1][labelled], head, targets)


def _selected(forward: Forward, head: Any, batch: dict[str, Any], targets: Tensor, labelled: Tensor) -> Tensor:
    # tokens are selected before the head, so that the model still does to its logits what it does (scaling, capping)
    with head_reads(head, lambda hidden: hidden[:, :-1][labelled][None]):
        logits = forward(batch["input_ids"], position_ids=batch["position_ids"])
    return F.cross_entropy(logits[0].float(), targets, reduction="none")
