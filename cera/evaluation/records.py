"""The records of an evaluation: one JSON line for each problem, on disk as soon as the problem is finished."""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from cera.evaluation.fields import RECORD, RecordError, check_fields, parse_object
from cera.runs.files import replacing

Record = dict[str, Any]
"""The prompt, answers and scores of a finished problem, which its ``key`` names; see ``evaluate.score_samples``."""

PER_SAMPLE = ("samples", "answers", "how", "correct", "tokens", "finished", "details")
"""The fields of a record that have one item for each sample."""


class Records:
    """A folder of records. Each rank appends to a file of its own.

    Appended records survive whatever stops the process. An incomplete line at the end of a file is ignored.

    Args:
        folder: The folder of the files.
        rank: Rank of this process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.rank_file = folder / f"records-{rank}.jsonl"

    def finished(self, required: Collection[str] = ("key",)) -> dict[str, Record]:
        """Return the records of all ranks, of this and of earlier processes, by key.

        Raises:
            RecordError: A record lacks a ``required`` field, or has one of another type.
        """
        records: dict[str, Record] = {}
        for file in (self.folder / "records.jsonl", *sorted(self.folder.glob("records-*.jsonl"))):
            if file.is_file():
                records.update((record["key"], record) for record in read(file, required))
        return records

    def append(self, record: Record) -> None:
        """Append one record. It is on disk when this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.rank_file.open("ab+") as file:
            _remove_incomplete_line(file)
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def join(self, keys: Sequence[str]) -> list[Record]:
        """Write all records to ``records.jsonl``, in the order of ``keys``, remove the ranks' files, and return them.

        Raises:
            RecordError: A record is missing.
        """
        records = self.finished()
        missing = [key for key in keys if key not in records]
        if missing:
            raise RecordError(f"{self.folder} lacks {len(missing)} of the problems, such as {missing[0]}.")
        joined = [records[key] for key in keys]
        with replacing(self.folder / "records.jsonl") as file:
            file.write_text("".join(json.dumps(record) + "\n" for record in joined))
        for file in self.folder.glob("records-*.jsonl"):
            file.unlink()
        return joined


def read(file: Path, required: Collection[str] = ("key",)) -> list[Record]:
    """Return the records of one file, without an incomplete line at its end.

    Args:
        file: The file.
        required: The fields that each record must have.

    Raises:
        RecordError: A complete line is no record; the message names the file, the line and the field.
    """
    records: dict[str, Record] = {}
    whole = file.read_bytes().rpartition(b"\n")[0]
    for number, line in enumerate(whole.splitlines(), start=1):
        where = f"{file}, line {number}"
        record = parse_object(line, where)
        check_fields(record, RECORD, {"key", *required}, where)
        lengths = {name: len(record[name]) for name in PER_SAMPLE if name in record}
        if len(set(lengths.values())) > 1:
            raise RecordError(f"{where}: lists of one length are expected, one item for each sample, got {lengths}.")
        if record["key"] in records:
            raise RecordError(f"{where}: key {record['key']!r} is that of an earlier line.")
        records[record["key"]] = record
    return list(records.values())


def _remove_incomplete_line(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
