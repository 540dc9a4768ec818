"""Losses and gradients of one pass, and how far they are from those of another."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cera.training.loss import answer_nll, supports_chunks


def one_pass(model: Any, batch: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Return the losses of the labelled tokens, and the gradients of the trained parameters, on the CPU in fp32."""
    torch.manual_seed(seed)
    batch = {name: values.to(model.device) for name, values in batch.items()}
    head = model.get_output_embeddings()
    losses, _ = answer_nll(
        lambda ids, **kwargs: model(input_ids=ids, **kwargs).logits, head, batch, supports_chunks(head)
    )
    model.zero_grad(set_to_none=True)
    losses.mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in gradients.values())
    return {name: values.detach().float().cpu() for name, values in {"losses": losses, **gradients}.items()}


def relative_error(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Return the largest relative error, by norm, of any of the tensors."""
    assert ours.keys() == theirs.keys()
    errors = {
        name: float(torch.linalg.norm(ours[name] - theirs[name]) / torch.linalg.norm(theirs[name])) for name in ours
    }
    return max(errors.values())
