"""How much of a run's outputs belongs to a checkpoint, so that a resumed run goes on with the outputs of that step.

Beside ``checkpoints/step=N.ckpt`` lies ``step=N.json``. It holds how long the files that grow (``metrics.csv`` and
TensorBoard's) were when they had all of the first N steps, and what of step N comes after the checkpoint. The state in
the checkpoint has nothing of that, so a run that resumes repeats it, even if it was done. The journal is written before
the checkpoint, and again at the end of the run.
"""

import csv
import json
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from cera.foreign_files import FileError, read_json_object
from cera.runs.files import replacing, sync_file

METRICS = "metrics.csv"
EVENTS = "events.out.tfevents.*"
"""TensorBoard's files in a run directory."""


VALIDATION, EPOCH, RUN = "validation", "epoch", "run"
"""What comes after a step's log: its validation, if it is due, and the ends of its epoch and of the run."""


@dataclass(frozen=True)
class Journal:
    """The state of a run's outputs at a checkpoint.

    Attributes:
        left_out: What comes after the checkpoint of ``VALIDATION``, ``EPOCH`` and ``RUN``; empty at the end of the run.
        rows: Number of rows of ``metrics.csv``.
        events: Size of each of TensorBoard's files in bytes, by name.
    """

    left_out: list[str]
    rows: int
    events: dict[str, int]

    @classmethod
    def take(cls, run_dir: Path, left_out: Collection[str]) -> "Journal":
        """Flush the outputs in ``run_dir`` to disk, and return their state."""
        for path in (run_dir / METRICS, *run_dir.glob(EVENTS)):
            if path.is_file():
                sync_file(path)
        events = {path.name: path.stat().st_size for path in sorted(run_dir.glob(EVENTS))}
        return cls(sorted(left_out), max(len(_lines(run_dir / METRICS)) - 1, 0), events)

    @classmethod
    def read(cls, checkpoint: Path) -> "Journal | None":
        """Return the journal of a checkpoint, or ``None`` for a checkpoint of an earlier version, which has none.

        Raises:
            FileError: There is one, but it is damaged.
        """
        path = journal_path(checkpoint)
        if not path.exists():
            return None
        content = read_json_object(path)
        for name, kind in (("left_out", list), ("rows", int), ("events", dict)):
            if not isinstance(content.get(name), kind):
                raise FileError(f"{path}: {name} must be {kind.__name__}, got {content.get(name)!r}.")
        sizes = {str(name): int(size) for name, size in content["events"].items() if isinstance(size, int)}
        return cls(content["left_out"], content["rows"], sizes)

    @classmethod
    def before_step(cls, run_dir: Path, step: int) -> "Journal":
        """Return what a journal of a checkpoint of ``step`` would hold that an earlier version has written without."""
        table = csv.DictReader(line.decode() for line in _lines(run_dir / METRICS))
        rows = sum(int(row["step"]) < step for row in table)
        return cls([], rows, {path.name: path.stat().st_size for path in run_dir.glob(EVENTS)})

    def save(self, checkpoint: Path) -> None:
        """Write the journal of a checkpoint."""
        path = journal_path(checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def cut_back(self, run_dir: Path) -> None:
        """Remove from the outputs what was written since; a crash meanwhile leaves no more to do than before."""
        lines = _lines(run_dir / METRICS)
        if lines:
            os.truncate(run_dir / METRICS, sum(map(len, lines[: self.rows + 1])))
        for path in run_dir.glob(EVENTS):
            if path.name in self.events:
                os.truncate(path, min(self.events[path.name], path.stat().st_size))


NOTHING = Journal(left_out=[], rows=0, events={})
"""The state before the first step."""


def journal_path(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's journal."""
    return checkpoint.with_suffix(".json")


def _lines(metrics: Path) -> list[bytes]:
    """Return the whole lines of ``metrics.csv`` with their ends, the header first."""
    lines = metrics.read_bytes().splitlines(keepends=True) if metrics.is_file() else []
    return [line for line in lines if line.endswith(b"\n")]
