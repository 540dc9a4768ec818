"""Rows that commands measure an adapter on: a dataset, or word problems that no training set holds."""

from typing import Any

from cera.data.datamodule import ChatData
from cera.data.datasets import ChatDataset
from cera.data.generated import ReasoningGymWordProblems
from cera.data.rows import DataError
from cera.spectral.sample import pad_to_longest

PROBLEMS = ReasoningGymWordProblems(problem_seed=1)
"""The default rows: word problems drawn with another seed than those of the training set."""


def measured_rows(
    base: str, dataset: ChatDataset | None, rows: int, packing: bool = True, chat_template: str | None = None
) -> ChatData:
    """Return rows to measure an adapter on, as the held-out rows of a data module, checked but not yet read.

    Args:
        base: Base model whose tokenizer encodes them.
        dataset: What they are from; ``None`` takes ``PROBLEMS``.
        rows: Number of rows.
        packing: Whether documents share a row of a batch.
        chat_template: The template that renders them; ``None`` takes the tokenizer's.

    Raises:
        DataError: The number of rows or the dataset is invalid.
    """
    if rows < 1:
        raise DataError(f"--rows must be at least 1, got {rows}.")
    dataset = dataset or PROBLEMS
    data = ChatData(dataset, base, validation=dataset, validation_rows=rows, packing=packing)
    data.chat_template = chat_template
    data.check()
    return data


def measured_batches(
    base: str, dataset: ChatDataset | None, rows: int, padded: bool, chat_template: str | None = None
) -> list[dict[str, Any]]:
    """Return ``measured_rows`` as batches: packed, or one document per row, padded to the longest of all.

    Raises:
        DataError: The number of rows or the dataset is invalid.
    """
    data = measured_rows(base, dataset, rows, not padded, chat_template)
    data.setup()
    batches = list(data.val_dataloader())
    if not padded:
        return batches
    assert data.validation_stream is not None
    return pad_to_longest(batches, data.validation_stream.encoder.tokenizer.pad_token_id)


def separate_rows(
    base: str, dataset: ChatDataset | None, rows: int, fit_rows: int, chat_template: str | None = None
) -> ChatData:
    """Return rows to measure on as the held-out rows of a data module, and others to fit to as its training rows.

    Every row is a document of its own. The data module is checked but not yet read.

    Args:
        base: Base model whose tokenizer encodes them.
        dataset: What they are from; ``rows`` are held out at random, with a fixed seed. ``None`` takes word problems
            that follow those of the embedded training set, which repeat none of them.
        rows: Number of rows to measure on.
        fit_rows: Number of rows to fit to that a user asks for; the training rows of a dataset may be more.
        chat_template: The template that renders them; ``None`` takes the tokenizer's.

    Raises:
        DataError: A number of rows or the dataset is invalid.
    """
    for name, value in (("rows", rows), ("fit-rows", fit_rows)):
        if value < 1:
            raise DataError(f"--{name} must be at least 1, got {value}.")
    if dataset is None:
        dataset = ReasoningGymWordProblems(size=rows + fit_rows, skip=ReasoningGymWordProblems().size)
    data = ChatData(dataset, base, validation_rows=rows, packing=False)
    data.chat_template = chat_template
    data.check()
    return data
