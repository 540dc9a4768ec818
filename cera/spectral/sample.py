"""Which rows of H a spectrum is of: the kind of tokens, their number, and the identity of the data.

Effective rank grows with the number of tokens, and padding and prompts are other rows than answers. Numbers of
different samples are not comparable; ``differing_samples`` says so.

    mask = measured_tokens(batch, "answer")
    data = fingerprint(batch)
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Tokens = Literal["answer", "all", "with_padding"]
"""Positions of a batch: those with a label, all that are no padding, or all."""

NAMES: dict[Tokens, str] = {"answer": "answer tokens", "all": "tokens", "with_padding": "tokens with padding"}

IGNORE = -100
"""Label of a position without loss, as in transformers."""

FINGERPRINTS = 2**64
"""Fingerprints are added modulo this number (``total``), so that neither order nor batches matter."""


@dataclass(frozen=True)
class Sample:
    """The rows of H.

    Attributes:
        tokens: Which positions were measured.
        count: Their number; ``None`` if it was not recorded.
        data: Fingerprint of the documents that they are from (16 hexadecimal digits); ``None`` if unknown.
    """

    tokens: Tokens = "all"
    count: int | None = None
    data: str | None = None

    def __str__(self) -> str:
        count = "an unrecorded number of" if self.count is None else f"{self.count:,}"
        data = "unrecorded data" if self.data is None else f"data {self.data[:8]}"
        return f"{count} {NAMES[self.tokens]} of {data}"


def measured_tokens(batch: Any, tokens: Tokens) -> Tensor | None:
    """Return which positions of a batch are measured, (batch, length) bool; ``None`` stands for all of them.

    Args:
        batch: Has ``tokens`` or ``attention_mask`` if there is padding, and ``labels`` (-100: none) for ``answer``. The
            positions of the answer are those of its own tokens, not those that predict them.
        tokens: Which positions.

    Raises:
        ValueError: The answer's positions are wanted, and the batch has no labels.
    """
    if tokens == "with_padding":
        return None
    if tokens == "all":
        return batch_mask(batch)
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        raise ValueError("tokens must be all or with_padding for batches without labels (batch, length), got answer.")
    return labels != IGNORE


def batch_mask(batch: Any) -> Tensor | None:
    """Return which positions of a batch are tokens, (batch, length) bool, or ``None`` if it does not say.

    The mask is ``tokens`` as this package's collator makes it, otherwise a two-dimensional ``attention_mask``.
    """
    if not isinstance(batch, Mapping):
        return None
    for key in ("tokens", "attention_mask"):
        mask = batch.get(key)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return mask.bool()
    return None


def fingerprint(batch: Any) -> int | None:
    """Return a number that identifies the documents of a batch, without padding; ``None`` if it has no ``input_ids``.

    The ``total`` of several batches is the same in any order, packed or not, and on any number of processes.
    """
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        return None
    return total(_hash(document) for document in _documents(batch, ids))


def total(fingerprints: Iterable[int | None]) -> int | None:
    """Return the fingerprint of several batches together; ``None`` if that of one is not known."""
    numbers = list(fingerprints)
    known = [number for number in numbers if number is not None]
    return sum(known) % FINGERPRINTS if len(known) == len(numbers) else None


def digits(fingerprint: int | None) -> str | None:
    """Return a fingerprint as it is recorded: 16 hexadecimal digits."""
    return None if fingerprint is None else f"{fingerprint:016x}"


def pad_to_longest(batches: Iterable[Mapping[str, Tensor]], pad_token_id: int) -> list[dict[str, Tensor]]:
    """Return batches of one document per row, all padded at the end to the longest row of all batches.

    The padding continues its document: positions go on, and it attends to the text before it, as in a padded batch that
    a model reads without an attention mask.

    Args:
        batches: With ``input_ids``, ``labels`` and ``tokens``, each (batch, length), not packed.
        pad_token_id: Id of the padding.
    """
    batches = list(batches)
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    fills = {"input_ids": pad_token_id, "labels": IGNORE, "tokens": False}
    padded = []
    for batch in batches:
        more = longest - batch["input_ids"].shape[1]
        rows = {key: F.pad(batch[key], (0, more), value=fill) for key, fill in fills.items()}
        padded.append({**rows, "position_ids": torch.arange(longest).expand(len(rows["input_ids"]), -1)})
    return padded


def differing_samples(samples: Mapping[str, Sample]) -> str | None:
    """Return a sentence that names two adapters that were measured on different rows; ``None`` if all agree.

    Args:
        samples: By label of the adapter.
    """
    first, sample = next(iter(samples.items()), ("", Sample()))
    for label, other in samples.items():
        if other != sample:
            return f"Not comparable: {first} was measured on {sample}, and {label} on {other}."
    return None


def _documents(batch: Mapping[str, Any], ids: Tensor) -> Iterator[Tensor]:
    mask, positions = batch_mask(batch), batch.get("position_ids")
    for i, row in enumerate(ids):
        keep = torch.ones_like(row, dtype=torch.bool) if mask is None else mask[i]
        if isinstance(positions, Tensor) and positions.shape == ids.shape:
            starts = positions[i][keep].eq(0).nonzero().flatten().tolist()
            yield from row[keep].tensor_split([start for start in starts if start])
        else:
            yield row[keep]


def _hash(document: Tensor) -> int:
    content = document.to("cpu", torch.int64).numpy().tobytes()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") if content else 0
