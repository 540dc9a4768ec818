"""Rows that commands measure an adapter on: a chat file, or word problems that no training set holds."""

from pathlib import Path

from cera.data.datamodule import ChatData
from cera.data.datasets import ChatDataset, ReasoningGymWordProblems
from cera.data.rows import DataError

PROBLEMS = ReasoningGymWordProblems(problem_seed=1)
"""The default rows: word problems drawn with another seed than those of the training set."""


def measured_rows(base: str, file: Path | None, rows: int) -> ChatData:
    """Return rows to measure an adapter on, as the held-out rows of a data module, checked but not yet read.

    Args:
        base: Base model whose tokenizer encodes them.
        file: A chat file; ``None`` takes ``PROBLEMS``.
        rows: Number of rows.

    Raises:
        DataError: The number of rows or the file is invalid.
    """
    if rows < 1:
        raise DataError(f"--rows must be at least 1, got {rows}.")
    dataset = ChatDataset(data_files=str(file)) if file else PROBLEMS
    data = ChatData(dataset, base, validation=dataset, validation_rows=rows)
    data.check()
    return data
