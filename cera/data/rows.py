"""Reads the rows of a local file or of a set on the Hugging Face hub, and checks their columns."""

import contextlib
import hashlib
import json
import os
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets

LOADERS = {".jsonl": "text", ".json": "json", ".parquet": "parquet"}
"""File ending -> loader of ``datasets``. JSON lines are read as text and parsed one by one, so that a broken line is
one malformed row rather than the end of the file."""

datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # counting asks the hub, and waits for it, even for local files


PLAIN_PATH = re.compile(r"[\w./ -]+")
"""Paths that ``datasets`` takes literally. Others may be patterns (``*``, ``?``, ``[``) or URLs (``:``) to it."""


class DataError(ValueError):
    """A dataset is missing, empty, or not of the form that its class expects."""


@dataclass
class Rows:
    """Rows with certain columns. Subclasses name the columns, and define what a row becomes.

    Args:
        data_files: Local file or files (.jsonl, .json, .parquet), each named by its path: ``*``, ``?`` and ``[`` are
            characters like others, and a leading ``~`` is the home directory. ``None`` loads the set from the hub.
        path: Id of the set on the hub, if it has one.
        name: Configuration of the set on the hub.
        split: Split of the set on the hub.
        streaming: Whether rows are read one after the other, without downloading or indexing the whole set first.
    """

    columns: ClassVar[tuple[tuple[str, ...], ...]]
    """The columns that a row must have; several alternatives are possible."""

    data_files: str | list[str] | None = None
    path: str | None = None
    name: str | None = None
    split: str = "train"
    streaming: bool = False

    def files(self) -> list[str]:
        """Return the local files; an empty list if the set is on the hub."""
        files = [self.data_files] if isinstance(self.data_files, str) else list(self.data_files or [])
        return [os.path.expanduser(file) for file in files]  # not Path's, which takes ./~ for the home directory, too

    def check(self) -> None:
        """Check what can be checked without the network.

        Raises:
            DataError: A file is missing, empty or unreadable, or has the wrong columns.
        """
        if not self.files() and self.path is None:
            raise DataError(f"{type(self).__name__} needs data_files (a .jsonl, .json or .parquet file) or a hub path.")
        for file in map(Path, self.files()):
            if not file.is_file():
                raise DataError(f"data_files: no such file: {file}")
            if file.stat().st_size == 0:
                raise DataError(f"data_files: {file} is empty; expected rows with {self._expected()}.")
            if file.suffix not in LOADERS:
                raise DataError(f"data_files: {file} ends in {file.suffix!r}; expected one of {', '.join(LOADERS)}.")
        if len({Path(file).suffix for file in self.files()}) > 1:
            raise DataError(f"data_files: files of one kind are expected, got {', '.join(self.files())}.")
        if self.files():
            try:
                first = next(iter(self.load(streaming=True)), None)
            except Exception as error:  # pyarrow and ujson raise various classes, without the file's name
                raise DataError(f"data_files: {', '.join(self.files())} cannot be read: {error}") from error
            self._check_columns(first)

    def load(self, streaming: bool | None = None) -> datasets.Dataset | datasets.IterableDataset:
        """Return the rows in order. A row of a .jsonl file is ``{"text": line}``, which ``row`` parses."""
        streaming = self.streaming if streaming is None else streaming
        files = self.files()
        if files:
            loader = LOADERS[Path(files[0]).suffix]
            options = {"encoding": "utf-8-sig", "encoding_errors": "replace"} if loader == "text" else {}
            names = [_literal_name(Path(file)) for file in files]
            return datasets.load_dataset(loader, data_files=names, split="train", streaming=streaming, **options)
        return datasets.load_dataset(self.path, self.name, split=self.split, streaming=streaming)

    def row(self, raw: dict[str, Any]) -> dict[str, Any] | None:
        """Return a raw row of ``load`` with its columns; ``None`` for a blank line of a file.

        Raises:
            ValueError: The row is malformed; the message says in which way.
        """
        if raw.keys() == {"text"} and not raw["text"].strip():
            return None
        row = self._row(raw)
        missing = self._missing(row)
        if missing:
            raise ValueError(f"missing {missing}; it has {shorten(', '.join(row)) or 'nothing'}")
        return row

    def _row(self, raw: dict[str, Any]) -> dict[str, Any]:
        files = self.files()
        if not files or LOADERS[Path(files[0]).suffix] != "text":
            return raw
        if "\ufffd" in raw["text"]:
            raise ValueError("not UTF-8")
        try:
            row = json.loads(raw["text"])
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error}") from error
        except RecursionError as error:
            raise ValueError("not JSON that can be read: brackets are nested too deeply") from error
        if not isinstance(row, dict):
            raise ValueError(f"a JSON {type(row).__name__}, not an object")
        return row

    def _check_columns(self, raw: dict[str, Any] | None) -> None:
        if raw is None:
            raise DataError(f"data_files: {', '.join(self.files())} has no rows; expected {self._expected()}.")
        try:
            row = self._row(raw)
        except ValueError:
            return  # a malformed first row is counted like any other one
        if self._missing(row):
            raise DataError(
                f"data_files: {', '.join(self.files())} has the columns {shorten(', '.join(row))}; "
                f"{type(self).__name__} expects {self._expected()}."
            )

    def _missing(self, row: dict[str, Any]) -> str:
        if any(all(row.get(column) is not None for column in columns) for columns in self.columns):
            return ""
        return self._expected()

    def _expected(self) -> str:
        return " or ".join(" and ".join(columns) for columns in self.columns)


def shorten(text: str, limit: int = 300) -> str:
    """Return ``text`` for an error message: its first ``limit`` characters, and "..." if there are more."""
    return text if len(text) <= limit else text[:limit] + "..."


def describe(value: Any) -> str:
    """Return a short ``repr`` of a value from a row, which may be of any size and nested to any depth."""
    return shorten(reprlib.repr(value))


def _literal_name(file: Path) -> str:
    """Return a name of ``file`` that ``datasets`` reads as a path.

    For a path with special characters it is that of a link in the cache of ``datasets``. The link is named by path,
    time and size, so that a changed file is not taken for the one that ``datasets`` has in its cache.
    """
    if PLAIN_PATH.fullmatch(str(file)):
        return str(file)
    status = file.stat()
    key = f"{file.absolute()}\n{status.st_mtime_ns}\n{status.st_size}"
    name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]
    link = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / "cera-links" / f"{name}{file.suffix}"
    link.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # made by an earlier run, or by another process just now
        link.symlink_to(file.absolute())
    return str(link)
