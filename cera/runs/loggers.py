"""Loggers of a run: a ``metrics.csv`` that survives a resume, and access to the trainer's loggers for callbacks.

A finished run's metrics are read with ``cera.runs.finished``, which needs no Lightning.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Trainer
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from cera.runs.files import replacing


class _Appender(_ExperimentWriter):
    """Continues an existing file after its last row; Lightning's writer deletes it."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Add columns in a new file that replaces the old one when it is complete; Lightning's writer empties it."""
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        with replacing(path) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)


class MetricsCSV(CSVLogger):
    """Writes ``metrics.csv`` in the run directory itself, and keeps the rows that are there.

    Args:
        run_dir: Run directory.
    """

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__(save_dir=str(run_dir), name="", version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """The writer, created at its first use and on the first rank only."""
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Appender(log_dir=self.log_dir)
        return self._experiment

    def log_hyperparams(self, params: object = None) -> None:
        """Do nothing: the run directory has ``config.yaml``."""


class RunTensorBoard(TensorBoardLogger):
    """Writes TensorBoard's files in the run directory itself.

    Args:
        run_dir: Run directory.
    """

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__(save_dir=str(run_dir), name="", version="", default_hp_metric=False)

    @rank_zero_only
    def save(self) -> None:
        """Flush the events to disk, and write ``hparams.yaml`` as a whole; Lightning keeps half a file."""
        path = Path(self.log_dir) / self.NAME_HPARAMS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with replacing(path) as unfinished:
                save_hparams_to_yaml(unfinished, self.hparams)
        super().save()


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
