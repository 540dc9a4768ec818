"""Tokenizes all rows of a dataset once, for all runs on this machine that read the same rows in the same way.

The documents are kept in the cache of ``datasets`` (``HF_DATASETS_CACHE``), and read from there as they are needed. A
file is named by all that its documents depend on, so that it is never taken for that of other rows, another tokenizer
or another version of this package.

Example:
    >>> documents = tokenized(rows, dataset, encoder)  # a `datasets.Dataset` with as many rows
    >>> document_of(documents[0])
"""

import hashlib
import inspect
import json
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import datasets

from cera.data.chat import ChatEncoder, Document
from cera.data.datasets import ChatDataset
from cera.data.identity import dataset_identity
from cera.data.template import ConversationError, TemplateError

FOLDER = "cera-documents"
"""Folder in the cache of ``datasets``."""

FEATURES = datasets.Features(
    input_ids=datasets.List(datasets.Value("int32")),
    labels=datasets.List(datasets.Value("int32")),
    malformed=datasets.Value("string"),
)


def tokenized(rows: datasets.Dataset, dataset: ChatDataset, encoder: ChatEncoder) -> datasets.Dataset:
    """Return the document of each row, in the order of ``rows``.

    Args:
        rows: Raw rows.
        dataset: Turns a raw row into messages.
        encoder: Turns messages into a document.

    Raises:
        TemplateError: The tokenizer's template cannot be used.
    """
    fingerprint = documents_fingerprint(rows, dataset, encoder)
    file = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / FOLDER / f"{fingerprint}.arrow"
    file.parent.mkdir(parents=True, exist_ok=True)
    return rows.map(
        lambda raw: _encoded(raw, dataset, encoder),
        remove_columns=rows.column_names,
        features=FEATURES,
        cache_file_name=str(file),  # is written whole, by another name first
        load_from_cache_file=True,
        new_fingerprint=fingerprint,
        desc="tokenizing",
    )


def documents_fingerprint(rows: datasets.Dataset, dataset: ChatDataset, encoder: ChatEncoder) -> str:
    """Return a name for all that the documents depend on, 32 hexadecimal digits."""
    tokenizer = encoder.tokenizer
    template = str(tokenizer.chat_template)
    parts = {
        "rows": rows._fingerprint,  # of their content; datasets has no public name for it
        "dataset": dataset_identity(dataset),
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": template,
        "date": str(date.today()) if "strftime" in template else "",  # some templates write it
        "encoder": [encoder.max_length, encoder.overlong, encoder.loss_on, encoder.loss_on_end],
        "code": _code(inspect.getsourcefile(type(dataset))),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@cache
def _code(source: str | None) -> str:
    """Return a digest of the code that makes documents: this package's, and the file of the dataset's own class."""
    digest = hashlib.sha256()
    for file in [*sorted(Path(__file__).parent.glob("*.py")), *([Path(source)] if source else [])]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _encoded(raw: dict[str, Any], dataset: ChatDataset, encoder: ChatEncoder) -> dict[str, Any]:
    """Return the columns of one row: no tokens if it gives no document, and why it is malformed."""
    document, malformed = None, None
    try:
        messages = dataset.parse(raw)
        document = None if messages is None else encoder(messages)
    except ValueError as error:
        if isinstance(error, TemplateError) and not isinstance(error, ConversationError):
            raise  # an error of the tokenizer, not of the row
        malformed = str(error)
    ids, labels = (document.input_ids, document.labels) if document is not None else ([], [])
    return {"input_ids": ids, "labels": labels, "malformed": malformed}


def document_of(row: dict[str, Any]) -> Document | None:
    """Return the document of a row of ``tokenized``; ``None`` if it gives none.

    Raises:
        ValueError: The raw row is malformed.
    """
    if row["malformed"] is not None:
        raise ValueError(row["malformed"])
    return Document(row["input_ids"], row["labels"]) if row["input_ids"] else None
