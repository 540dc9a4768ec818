"""Losses of documents in packed rows, and of the same documents alone."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cera.data.chat import IGNORE, Document
from cera.data.packing import Pack, collate


@torch.inference_mode()
def losses(model: Any, packs: list[Pack], **changed: Tensor) -> list[Tensor]:
    """The losses of each document's labelled tokens, in the order of the documents."""
    batch = {**collate(packs, pad_token_id=0), **changed}
    ids, positions = (batch[name].to(model.device) for name in ("input_ids", "position_ids"))
    logits = model(input_ids=ids, position_ids=positions).logits.float().cpu()
    nll = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none", ignore_index=IGNORE
    )
    of_labels = nll[batch["labels"][:, 1:].flatten() != IGNORE]
    return list(of_labels.split([document.n_labels for pack in packs for document in pack]))


def random_packs(lengths: list[list[int]], vocabulary: int, seed: int = 0) -> list[Pack]:
    """Packs of documents of random tokens, all labelled but the first, by their lengths."""
    generator = torch.Generator().manual_seed(seed)

    def document(length: int) -> Document:
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        return Document(ids, [IGNORE, *ids[1:]])

    return [[document(length) for length in pack] for pack in lengths]


def difference(model: Any, packs: list[Pack], **changed: Tensor) -> float:
    """The largest difference of a loss in packed rows from that of the same document alone, in nats."""
    alone = [losses(model, [[document]])[0] for pack in packs for document in pack]
    pairs = zip(losses(model, packs, **changed), alone, strict=True)
    return max(float((packed - own).abs().max()) for packed, own in pairs)
