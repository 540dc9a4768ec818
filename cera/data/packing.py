"""Packs documents into rows of a fixed length, and rows into a batch, without attention between documents.

Positions start at 0 in each document. Without an ``attention_mask``, transformers reads such positions as separate
sequences: as a block-diagonal mask in SDPA and eager attention, as variable-length sequences in FlashAttention. Padding
is therefore one more document, without labels.
"""

from typing import Any

import torch

from cera.data.chat import IGNORE, Document

Pack = list[Document]
"""Documents that share a row."""


class Packer:
    """Packs documents as they arrive, by best fit.

    A document goes into the open pack in which it leaves the least room. If more than ``max_open`` packs are open, the
    fullest one is closed.

    Args:
        max_length: Maximum number of tokens of a pack.
        max_open: Maximum number of open packs.
    """

    def __init__(self, max_length: int, max_open: int) -> None:
        self.max_length = max_length
        self.max_open = max_open
        self.open = []

    @property
    def open(self) -> list[Pack]:
        """The open packs; may be set to those of a packer that stopped earlier."""
        return self._open

    @open.setter
    def open(self, packs: list[Pack]) -> None:
        self._open = packs
        self._lengths = [_tokens(pack) for pack in packs]  # a pack may have very many short documents

    def add(self, document: Document) -> Pack | None:
        """Add a document, and return the pack that was closed for it, if any."""
        room = self.max_length - len(document)
        fitting = [i for i, length in enumerate(self._lengths) if length <= room]
        if fitting:
            fullest = max(fitting, key=self._lengths.__getitem__)
            self._open[fullest].append(document)
            self._lengths[fullest] += len(document)
        else:
            self._open.append([document])
            self._lengths.append(len(document))
        return self._close() if len(self._open) > self.max_open else None

    def _close(self) -> Pack:
        fullest = max(range(len(self._open)), key=self._lengths.__getitem__)
        self._lengths.pop(fullest)
        return self._open.pop(fullest)

    def flush(self) -> list[Pack]:
        """Close and return all open packs, fullest first."""
        return [self._close() for _ in range(len(self._open))]


def _tokens(pack: Pack) -> int:
    return sum(len(document) for document in pack)


def collate(packs: list[Pack], pad_token_id: int) -> dict[str, Any]:
    """Return the rows of one batch, padded to the longest.

    Args:
        packs: One or more packs; one is empty on a rank without data in the last step of an epoch.
        pad_token_id: Any valid token id.

    Returns:
        ``input_ids``, ``labels`` and ``position_ids``, each (packs, length) int64; ``tokens``, (packs, length) bool,
        False for padding; and ``n_tokens``, the number of tokens without padding.
    """
    length = max(1, *(_tokens(pack) for pack in packs))
    input_ids = torch.full((len(packs), length), pad_token_id)
    labels = torch.full((len(packs), length), IGNORE)
    position_ids = torch.zeros((len(packs), length), dtype=torch.int64)
    for row, pack in enumerate(packs):
        start = 0
        for document in pack:
            end = start + len(document)
            input_ids[row, start:end] = torch.tensor(document.input_ids)
            labels[row, start:end] = torch.tensor(document.labels)
            position_ids[row, start:end] = torch.arange(len(document))
            start = end
        position_ids[row, start:] = torch.arange(length - start)
    lengths = torch.tensor([_tokens(pack) for pack in packs])
    return {
        "input_ids": input_ids,
        "labels": labels,
        "position_ids": position_ids,
        "tokens": torch.arange(length) < lengths[:, None],
        "n_tokens": int(lengths.sum()),
    }


def count_labels(packs: list[Pack]) -> int:
    """Return the number of tokens of ``packs`` with loss."""
    return sum(document.n_labels for pack in packs for document in pack)


def dump_packs(packs: list[Pack]) -> list[Any]:
    """Return packs as plain lists, for a checkpoint."""
    return [[(document.input_ids, document.labels) for document in pack] for pack in packs]


def load_packs(state: list[Any]) -> list[Pack]:
    """Return the packs that ``dump_packs`` turned into lists."""
    return [[Document(list(ids), list(labels)) for ids, labels in pack] for pack in state]
