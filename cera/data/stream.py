"""The stream of training batches: shuffled, packed, sharded, and resumable at any step.

There is one global stream for any number of ranks and workers: each of them reads all of it and keeps its own share of
the batches. Reading and tokenizing cost little compared with training a language model, and in return

- no row is seen twice and none is lost, by construction;
- a seed gives the same global batches for any layout of ranks x accumulation;
- one small state, the same on all ranks, resumes the stream exactly, even on another number of ranks;
- the loss can be weighted exactly, since each rank knows the number of labelled tokens of the whole step.
"""

import copy
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from cera.data.chat import ChatEncoder, Document
from cera.data.datasets import ChatDataset
from cera.data.packing import Pack, Packer, collate, count_labels, dump_packs, load_packs
from cera.data.rows import DataError
from cera.data.template import ConversationError, TemplateError
from cera.data.tokenized import document_of

log = logging.getLogger(__name__)

MAX_LOGGED = 3
"""Maximum number of malformed rows to log."""

MIN_ROWS = 100
"""Number of rows from which on the share of malformed ones is checked; it is also checked at the end of the epoch."""


@dataclass
class Position:
    """The position of the stream after a batch. As an object, it is not moved to a GPU with the batch."""

    state: dict[str, Any]


class ShuffledRows:
    """The rows of a dataset in an order that depends on (seed, epoch) only, from any position.

    A dataset with random access is permuted as a whole. A stream is read in blocks of ``buffer`` rows, and each block
    is permuted; its position is the state of the source at the start of the block and an offset in the block, so
    resuming reads at most one block again.

    Args:
        rows: The dataset.
        seed: Seed of the order; ``None`` keeps the rows in order.
        buffer: Number of rows in a block of a stream.
        numbers: The number of each row in its file, if ``rows`` is a part of it.
        with_replacement: Draw as many rows as there are, each from all of them. Needs random access and a seed.
    """

    def __init__(
        self,
        rows: datasets.Dataset | datasets.IterableDataset,
        seed: int | None,
        buffer: int,
        numbers: Sequence[int] | None = None,
        with_replacement: bool = False,
    ) -> None:
        self.numbers = range(sys.maxsize) if numbers is None else numbers
        self.rows = rows
        self.seed = seed
        self.buffer = buffer
        self.with_replacement = with_replacement

    def __call__(self, epoch: int, state: dict[str, Any] | None) -> Iterator[tuple[int, dict, dict[str, Any]]]:
        """Yield (row number, row, position after the row) from ``state`` on."""
        if isinstance(self.rows, datasets.Dataset):
            return self._permuted(epoch, state)
        return self._in_blocks(epoch, state)

    def _order(self, n: int, *key: int) -> list[int]:
        if self.seed is None:
            return list(range(n))
        generator = np.random.default_rng((self.seed, *key))
        return (generator.integers(n, size=n) if self.with_replacement else generator.permutation(n)).tolist()

    def _permuted(self, epoch: int, state: dict[str, Any] | None) -> Iterator[tuple[int, dict, dict[str, Any]]]:
        order = self._order(len(self.rows), epoch)
        for offset in range(state["offset"] if state else 0, len(order)):
            yield self.numbers[order[offset]], self.rows[order[offset]], {"offset": offset + 1}

    def _in_blocks(self, epoch: int, state: dict[str, Any] | None) -> Iterator[tuple[int, dict, dict[str, Any]]]:
        source = copy.deepcopy(self.rows)
        state = state or {"source": None, "block": 0, "offset": 0}
        if state["source"] is not None:
            source.load_state_dict(copy.deepcopy(state["source"]))
        reader = iter(source)
        block, offset, start = state["block"], state["offset"], state["source"]
        while rows := list(islice(reader, self.buffer)):
            order = self._order(len(rows), epoch, block)
            for i in range(offset, len(rows)):
                after = {"source": start, "block": block, "offset": i + 1}
                yield self.numbers[block * self.buffer + order[i]], rows[order[i]], after
            block, offset, start = block + 1, 0, copy.deepcopy(source.state_dict())


class BatchStream(IterableDataset):
    """Micro-batches of one rank, for ``DataLoader(batch_size=None)``. One pass is one epoch, or the rest of it.

    A step of the optimizer takes ``batch_size * world_size * accumulate`` packs of the global stream. The last step of
    an epoch is filled up with empty packs, so that all ranks make the same number of steps.

    Each item is the dict of ``collate`` with

    - ``step_labels``: the number of labelled tokens of the whole step, over all ranks and micro-batches;
    - ``position``: in the last micro-batch of a step, the ``Position`` of the stream after it; else ``None``.

    Args:
        dataset: Turns a raw row into messages.
        rows: The raw rows in order.
        encoder: Turns messages into a document.
        batch_size: Number of packs in a micro-batch of one rank.
        packing: Whether documents share a pack; if not, each document is a pack.
        accumulate: Number of micro-batches in an optimizer step.
        rank, world_size: This process, and the number of processes.
        max_malformed: Share of malformed rows, in [0, 1], past which reading stops with a ``DataError``.
        is_tokenized: Whether ``rows`` are documents already (``cera.data.tokenized``).
    """

    def __init__(
        self,
        dataset: ChatDataset,
        rows: ShuffledRows,
        encoder: ChatEncoder,
        batch_size: int,
        packing: bool = True,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        max_malformed: float = 0.01,
        is_tokenized: bool = False,
    ) -> None:
        self.dataset = dataset
        self.rows = rows
        self.encoder = encoder
        self.batch_size = batch_size
        self.packing = packing
        self.accumulate = accumulate
        self.rank = rank
        self.world_size = world_size
        self.max_malformed = max_malformed
        self.is_tokenized = is_tokenized
        self.position: dict[str, Any] = start_of_epoch(0)
        self._logged: set[int] = set()

    @property
    def packs_per_step(self) -> int:
        """Number of packs in an optimizer step, over all ranks."""
        return self.batch_size * self.world_size * self.accumulate

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker, n_workers = _take_worker_info()
        count = 0
        for packs, after in self.steps(self.position):
            step_labels = count_labels(packs)
            for i in range(self.accumulate):
                if count % n_workers == worker:
                    start = (i * self.world_size + self.rank) * self.batch_size
                    share = packs[start : start + self.batch_size] or [[]]
                    batch: dict[str, Any] = collate(share, self.encoder.tokenizer.pad_token_id)
                    batch["step_labels"] = step_labels
                    batch["position"] = Position(after) if i == self.accumulate - 1 else None
                    yield batch
                count += 1

    def steps(self, position: dict[str, Any]) -> Iterator[tuple[list[Pack], dict[str, Any]]]:
        """Yield the packs of each step of the global stream, and the position after it, to the end of the epoch.

        Raises:
            DataError: The epoch has no document to train on, or too many malformed rows.
        """
        last = None
        for packs, after in self._steps(position):
            if last:
                yield last
            last = (packs, after)
        if last:  # held back to know that it is the last one, after which the next epoch starts
            yield last[0], start_of_epoch(position["epoch"] + 1)

    def _steps(self, position: dict[str, Any]) -> Iterator[tuple[list[Pack], dict[str, Any]]]:
        epoch, row_state, counts = position["epoch"], position["rows"], dict(position["counts"])
        packer = Packer(self.encoder.max_length, max_open=max(16, self.packs_per_step))
        packer.open = load_packs(position["open"])
        ready = load_packs(position["ready"])

        def after() -> dict[str, Any]:
            packs = {"open": dump_packs(packer.open), "ready": dump_packs(ready)}
            return {"epoch": epoch, "rows": row_state, "counts": dict(counts), **packs}

        for document, after_row in self._documents(epoch, row_state, counts):
            row_state = after_row
            if document is None:
                continue
            pack = packer.add(document) if self.packing else [document]
            if pack:
                ready.append(pack)
            if len(ready) == self.packs_per_step:
                step, ready = ready, []
                yield step, after()
        self._check_malformed(counts)
        ready += packer.flush()
        if not ready and counts["rows"] == counts["malformed"] + counts["left_out"]:
            raise DataError(
                f"No row of {type(self.dataset).__name__} gave a document to train on: {counts['rows']} rows read, "
                f"{counts['malformed']} malformed, {counts['left_out']} filtered out or without an answer in the "
                f"first max_length={self.encoder.max_length} tokens."
            )
        while ready:
            step, ready = ready[: self.packs_per_step], ready[self.packs_per_step :]
            yield step, after()

    def _documents(
        self, epoch: int, row_state: dict[str, Any] | None, counts: dict[str, int]
    ) -> Iterator[tuple[Document | None, dict[str, Any]]]:
        """Yield the document of each row (``None`` if it gives none) and the position after the row."""
        for number, raw, after in self.rows(epoch, row_state):
            counts["rows"] += 1
            document = None
            try:
                document = self._document(raw)
                counts["left_out"] += document is None
            except ValueError as error:
                if isinstance(error, TemplateError) and not isinstance(error, ConversationError):
                    raise  # an error of the tokenizer, not of the row
                counts["malformed"] += 1
                if self.rank == 0 and len(self._logged) < MAX_LOGGED and number not in self._logged:
                    self._logged.add(number)
                    log.warning("skipped malformed row %d of %s: %s", number, type(self.dataset).__name__, error)
                if counts["rows"] >= MIN_ROWS:
                    self._check_malformed(counts)
            yield document, after

    def _document(self, raw: dict[str, Any]) -> Document | None:
        """Return the document of a row; ``None`` if it is left out."""
        if self.is_tokenized:
            return document_of(raw)
        messages = self.dataset.parse(raw)
        return None if messages is None else self.encoder(messages)

    def _check_malformed(self, counts: dict[str, int]) -> None:
        if counts["malformed"] > self.max_malformed * counts["rows"]:
            raise DataError(
                f"{counts['malformed']} of the first {counts['rows']} rows of {type(self.dataset).__name__} are "
                f"malformed, more than data.max_malformed={self.max_malformed:g} allows."
            )


def _take_worker_info() -> tuple[int, int]:
    """Return (worker, number of workers) of this DataLoader process; (0, 1) in the main process.

    The information is removed from the worker: ``datasets`` would use it to give each worker only some of the source's
    shards, whereas here each worker reads the whole stream and keeps its share of the batches.
    """
    info = get_worker_info()
    if info is None:
        return 0, 1
    torch.utils.data._utils.worker._worker_info = None  # type: ignore[attr-defined]
    return info.id, info.num_workers


def start_of_epoch(epoch: int) -> dict[str, Any]:
    """Return the position at the start of an epoch."""
    counts = {"rows": 0, "malformed": 0, "left_out": 0}
    return {"epoch": epoch, "rows": None, "open": [], "ready": [], "counts": counts}
