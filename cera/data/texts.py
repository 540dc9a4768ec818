"""Running text, on which forgetting is measured: what an adapter costs on text that it was not trained on.

Example:
    >>> for text in PythonDocumentation().texts():
    ...     print(text)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets

from cera.data.chat import IGNORE, Document
from cera.data.packing import Pack, Packer, collate
from cera.data.rows import DataError, Rows


@dataclass
class PlainText(Rows):
    """Rows with a ``text`` each, such as a file of your own.

    Args:
        most_rows: Number of rows to read, from the first on; ``None`` reads all.
        fewest_characters: Rows with fewer characters are left out, such as blank lines and headings.
    """

    columns: ClassVar = (("text",),)
    most_rows: int | None = None
    fewest_characters: int = 1

    def texts(self) -> Iterator[str]:
        """Yield the texts in order.

        Raises:
            DataError: A row has no text.
        """
        for number, raw in enumerate(self.load()):
            if self.most_rows is not None and number >= self.most_rows:
                return
            try:
                row = self.row(raw)
            except ValueError as error:
                raise DataError(f"row {number} of {type(self).__name__} is malformed: {error}") from error
            if row is None:
                continue
            if not isinstance(row["text"], str):
                raise DataError(f"row {number} of {type(self).__name__}: text is {type(row['text']).__name__}")
            if len(row["text"]) >= self.fewest_characters:
                yield row["text"]


@dataclass
class WikiText2(PlainText):
    """The test split of WikiText-2 (raw), of the first 500 rows those with more than 20 characters.

    This is what the authors' code measures forgetting on.
    """

    path: str | None = "Salesforce/wikitext"
    name: str | None = "wikitext-2-raw-v1"
    split: str = "test"
    most_rows: int | None = 500
    fewest_characters: int = 21


@dataclass
class PythonDocumentation(PlainText):
    """The Python language reference, in English, which comes with Python as ``pydoc_data.topics``: needs no network.

    A row is one topic, such as ``assignment``. The text, and so what is measured on it, depends on Python's version.
    """

    def check(self) -> None:
        if self.data_files is not None:
            raise DataError(
                "PythonDocumentation reads Python's own and takes no data_files. For a file, use PlainText."
            )

    def load(self, streaming: bool | None = None) -> datasets.Dataset:
        try:
            from pydoc_data.topics import topics
        except ImportError as error:  # some distributions of Python leave it out
            raise DataError("PythonDocumentation: this Python comes without pydoc_data. Use PlainText.") from error
        return datasets.Dataset.from_list([{"text": topics[name]} for name in sorted(topics)])


def text_batches(
    source: PlainText, tokenizer: Any, batches: int, batch_size: int, max_length: int, packing: bool
) -> list[dict[str, Any]]:
    """Return the first batches of ``source``, in which all tokens but a text's first have loss.

    Args:
        source: The texts. Of a longer text the first ``max_length`` tokens are used.
        tokenizer: A transformers tokenizer, which adds its special tokens as it does to any text.
        batches: Number of batches; there may be fewer in ``source``.
        batch_size: Number of rows in a batch.
        max_length: Maximum number of tokens of a row.
        packing: Whether texts share a row.

    Returns:
        Batches as ``cera.data.packing.collate`` makes them.

    Raises:
        DataError: ``source`` has no text of two tokens or more.
    """
    packs: list[Pack] = []
    packer = Packer(max_length, max_open=16)
    for text in source.texts():
        ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
        if len(ids) < 2:
            continue
        document = Document(ids, [IGNORE, *ids[1:]])
        pack = packer.add(document) if packing else [document]
        if pack:
            packs.append(pack)
        if len(packs) == batches * batch_size:
            break
    packs = (packs + packer.flush())[: batches * batch_size]
    if not packs:
        raise DataError(f"{type(source).__name__} has no text of two tokens or more.")
    return [
        collate(packs[start : start + batch_size], tokenizer.pad_token_id) for start in range(0, len(packs), batch_size)
    ]
