"""Rows that commands measure an adapter on: a chat file, or word problems that no training set holds."""

from pathlib import Path
from typing import Any

from cera.data.datamodule import ChatData
from cera.data.datasets import ChatDataset, ReasoningGymWordProblems
from cera.data.rows import DataError
from cera.spectral.sample import pad_to_longest

PROBLEMS = ReasoningGymWordProblems(problem_seed=1)
"""The default rows: word problems drawn with another seed than those of the training set."""


def measured_rows(base: str, file: Path | None, rows: int, packing: bool = True) -> ChatData:
    """Return rows to measure an adapter on, as the held-out rows of a data module, checked but not yet read.

    Args:
        base: Base model whose tokenizer encodes them.
        file: A chat file; ``None`` takes ``PROBLEMS``.
        rows: Number of rows.
        packing: Whether documents share a row of a batch.

    Raises:
        DataError: The number of rows or the file is invalid.
    """
    if rows < 1:
        raise DataError(f"--rows must be at least 1, got {rows}.")
    dataset = ChatDataset(data_files=str(file)) if file else PROBLEMS
    data = ChatData(dataset, base, validation=dataset, validation_rows=rows, packing=packing)
    data.check()
    return data


def measured_batches(base: str, file: Path | None, rows: int, padded: bool) -> list[dict[str, Any]]:
    """Return ``measured_rows`` as batches: packed, or one document per row, padded to the longest of all.

    Raises:
        DataError: The number of rows or the file is invalid.
    """
    data = measured_rows(base, file, rows, packing=not padded)
    data.setup()
    batches = list(data.val_dataloader())
    if not padded:
        return batches
    assert data.validation_stream is not None
    return pad_to_longest(batches, data.validation_stream.encoder.tokenizer.pad_token_id)
