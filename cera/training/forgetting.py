"""How far an adapter takes a model from its base on text that it was not trained on.

Example:
    >>> check_base_is_kept(model.peft_config["default"])
    >>> measure(model, text_batches(WikiText2(), tokenizer, 8, 4, 512, packing=True)).kl
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from torch.nn import functional as F

from cera.data.chat import IGNORE
from cera.models.eval_mode import eval_mode

CHUNK = 256
"""Number of tokens whose distributions are held in fp32 at a time."""

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of PEFT's names of LoRA's starts that move a part of the base's weights into the adapter."""


class Measurement(NamedTuple):
    """Means over tokens of general text, in nats.

    Attributes:
        loss: Negative log-likelihood under the adapted model.
        base_loss: That under the base.
        kl: ``KL(base || adapted) = sum_v p_base(v) (ln p_base(v) - ln p_adapted(v))`` of the next token.
    """

    loss: float
    base_loss: float
    kl: float


def check_base_is_kept(adapter: PeftConfig) -> None:
    """Raise ``ValueError`` if the model is not the base when ``adapter`` is disabled."""
    start = getattr(adapter, "init_lora_weights", None)
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise ValueError(
            f"Forgetting: model.adapter.init_lora_weights={start!r} changes the base's weights, so there is no base to "
            "compare with. Leave the callback out."
        )
    if getattr(adapter, "bias", "none") != "none":
        raise ValueError(
            f"Forgetting: model.adapter.bias={adapter.bias!r} trains the base's biases, so there is no base to compare "  # type: ignore[attr-defined]
            "with. Leave the callback out."
        )


@torch.no_grad()  # not inference_mode: ZeRO-3 reuses the tensors that it gathers in a forward
def measure(model: PeftModel, batches: Iterable[dict[str, Any]]) -> Measurement:
    """Return losses and divergence over the labelled tokens of all batches.

    Under ZeRO-3 every rank must call this with the same number of batches. Each row takes two forward passes.

    Args:
        model: The adapted model, which runs in eval mode and is returned to its own mode.
        batches: Batches of ``cera.data``.
    """
    device = next(model.parameters()).device
    sums, tokens = torch.zeros(3, dtype=torch.float64, device=device), 0
    with eval_mode(model):
        for batch in batches:
            for ids, labels, positions in zip(batch["input_ids"], batch["labels"], batch["position_ids"], strict=True):
                inputs = {"input_ids": ids[None].to(device), "position_ids": positions[None].to(device)}
                targets = labels[1:].to(device)
                sums += _row(model, inputs, targets)
                tokens += int((targets != IGNORE).sum())
    return Measurement(*(sums / tokens).tolist())


def _row(model: PeftModel, inputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    """Return the sums over the tokens of one row of what ``Measurement`` has the means of."""
    labelled = targets != IGNORE
    adapted = model(**inputs).logits[0, :-1][labelled]
    with model.disable_adapter():
        base = model(**inputs).logits[0, :-1][labelled]
    parts = zip(adapted.split(CHUNK), base.split(CHUNK), targets[labelled].split(CHUNK), strict=True)
    return sum((divergence(*part) for part in parts), torch.zeros(3, dtype=torch.float64, device=targets.device))


def divergence(adapted: Tensor, base: Tensor, targets: Tensor) -> Tensor:
    """Return summed loss, loss of the base and ``KL(base || adapted)``: (3,) in fp64.

    Args:
        adapted: Logits (tokens, vocabulary) of the adapted model.
        base: Those of the base.
        targets: The tokens that come next (tokens,).
    """
    log_p, log_q = (F.log_softmax(logits.float(), dim=-1) for logits in (adapted, base))
    losses = [F.nll_loss(log, targets, reduction="none") for log in (log_p, log_q)]
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    return torch.stack([values.double().sum() for values in (*losses, kl)])
