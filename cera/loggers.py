"""A ``metrics.csv`` that survives a resume."""

import csv
from pathlib import Path

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger


class _Appender(_ExperimentWriter):
    """Lightning's writer deletes the file that it finds; this one goes on behind its last row."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])


class MetricsCSV(CSVLogger):
    """``metrics.csv`` in the run directory itself.

    Args:
        run_dir: The run directory.
        resume_from: The step of the checkpoint that the run is resumed from. Rows of later steps, which will be
            written again, are dropped; ``None`` keeps all.
    """

    def __init__(self, run_dir: str | Path, resume_from: int | None = None) -> None:
        super().__init__(save_dir=str(run_dir), name="", version="", flush_logs_every_n_steps=1)
        self.resume_from = resume_from

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """The writer, made at its first use and on the first rank only."""
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            if self.resume_from is not None:
                _drop_rows_from(Path(self.log_dir) / _Appender.NAME_METRICS_FILE, self.resume_from)
            self._experiment = _Appender(log_dir=self.log_dir)
        return self._experiment

    def log_hyperparams(self, params: object = None) -> None:
        """Nothing: the run directory has ``config.yaml``."""


def _drop_rows_from(path: Path, step: int) -> None:
    if not path.is_file():
        return
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns, rows = list(reader.fieldnames or []), [row for row in reader if _step(row) < step]
    trimmed = path.with_name(f".{path.name}.unfinished")
    with trimmed.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)
    trimmed.replace(path)


def _step(row: dict[str, str | None]) -> float:
    """The row's step; infinity for a last line that was cut off."""
    value = row.get("step") or ""
    return int(value) if value.isdigit() else float("inf")
