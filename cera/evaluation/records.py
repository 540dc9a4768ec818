"""The records of an evaluation: one JSON line a problem, on disk as soon as the problem is finished."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cera.runs.files import replacing

Record = dict[str, Any]
"""What is known of a finished problem; ``key`` names it."""


class RecordError(ValueError):
    """The records are not what they should be; the message says which file and why."""


class Records:
    """A folder of records, to which each rank appends in a file of its own.

    Whatever stops the process, what was appended stays; half a line at a file's end is as if it had not been written.

    Args:
        folder: Where the files are.
        rank: Which one this process writes to.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.own = folder / f"records-{rank}.jsonl"

    def finished(self) -> dict[str, Record]:
        """The records of all ranks of this and of earlier processes, by key."""
        found: dict[str, Record] = {}
        for file in (self.folder / "records.jsonl", *sorted(self.folder.glob("records-*.jsonl"))):
            if file.is_file():
                found.update((record["key"], record) for record in read(file))
        return found

    def append(self, record: Record) -> None:
        """Write one record; on return it is on disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.own.open("ab+") as file:
            _cut_half_a_line(file)
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def join(self, keys: Sequence[str]) -> list[Record]:
        """All records in the order of ``keys``, put into ``records.jsonl`` in place of the ranks' files.

        Raises:
            RecordError: One is missing.
        """
        found = self.finished()
        missing = [key for key in keys if key not in found]
        if missing:
            raise RecordError(f"{self.folder} lacks {len(missing)} of the problems, such as {missing[0]}.")
        joined = [found[key] for key in keys]
        with replacing(self.folder / "records.jsonl") as file:
            file.write_text("".join(json.dumps(record) + "\n" for record in joined))
        for file in self.folder.glob("records-*.jsonl"):
            file.unlink()
        return joined


def read(file: Path) -> list[Record]:
    """The records of one file, but for half a line at its end.

    Raises:
        RecordError: A whole line is no record.
    """
    found = []
    whole = file.read_bytes().rpartition(b"\n")[0]
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
            found.append({**record, "key": record["key"]})
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{file}, line {number}, is no record: {error!r}.") from error
    return found


def _cut_half_a_line(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
