"""The records of an evaluation: one JSON line for each problem, on disk as soon as the problem is finished."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cera.runs.files import replacing

Record = dict[str, Any]
"""The prompt, answers and scores of a finished problem, which its ``key`` names; see ``evaluate.score_samples``."""


class RecordError(ValueError):
    """A file of records is wrong; the message says which file and why."""


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

    def finished(self) -> dict[str, Record]:
        """Return the records of all ranks, of this and of earlier processes, by key."""
        records: dict[str, Record] = {}
        for file in (self.folder / "records.jsonl", *sorted(self.folder.glob("records-*.jsonl"))):
            if file.is_file():
                records.update((record["key"], record) for record in read(file))
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


def read(file: Path) -> list[Record]:
    """Return the records of one file, without an incomplete line at its end.

    Raises:
        RecordError: A complete line is not a record.
    """
    records = []
    whole = file.read_bytes().rpartition(b"\n")[0]
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
            records.append({**record, "key": record["key"]})
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{file}, line {number}, is no record: {error!r}.") from error
    return records


def _remove_incomplete_line(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
