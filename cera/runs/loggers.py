"""Loggers of a run: a ``metrics.csv`` that survives a resume, and access to the trainer's loggers for callbacks.

A finished run's metrics are read with ``cera.runs.finished``, which needs no Lightning.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from cera.runs.files import replacing


class _Appender(_ExperimentWriter):
    """Continues an existing file after its last row; Lightning's writer deletes it."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])


class MetricsCSV(CSVLogger):
    """Writes ``metrics.csv`` in the run directory itself.

    Args:
        run_dir: Run directory.
        resume_from: Step of the checkpoint that the run resumes from. Rows of later steps, which will be written
            again, are dropped; ``None`` keeps all.
    """

    def __init__(self, run_dir: str | Path, resume_from: int | None = None) -> None:
        super().__init__(save_dir=str(run_dir), name="", version="", flush_logs_every_n_steps=1)
        self.resume_from = resume_from

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """The writer, created at its first use and on the first rank only."""
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            if self.resume_from is not None:
                _drop_rows_from(Path(self.log_dir) / _Appender.NAME_METRICS_FILE, self.resume_from)
            self._experiment = _Appender(log_dir=self.log_dir)
        return self._experiment

    def log_hyperparams(self, params: object = None) -> None:
        """Do nothing: the run directory has ``config.yaml``."""


def log_now(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Log ``values`` for the step just finished, whatever ``trainer.log_every_n_steps`` is.

    Lightning numbers steps from 0. Values from before the first step are logged at 0, too.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=max(trainer.global_step - 1, 0))


def tensorboard_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    """Return the trainer's TensorBoard loggers, for figures and text; an empty list on all ranks but the first."""
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _drop_rows_from(path: Path, step: int) -> None:
    if not path.is_file():
        return
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns, rows = list(reader.fieldnames or []), [row for row in reader if _step(row) < step]
    with replacing(path) as trimmed, trimmed.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)


def _step(row: dict[str, str | None]) -> float:
    """Return the row's step; infinity for a last line that was cut off."""
    value = row.get("step") or ""
    return int(value) if value.isdigit() else float("inf")
