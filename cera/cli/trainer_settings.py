"""Callbacks, loggers and plugins that a run directory adds to the configured trainer."""

import inspect
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from cera.callbacks import AdapterFile, Checkpoints, Progress, RunRecord, Summary
from cera.cli.chosen_run import ChosenRun
from cera.cli.suggest import import_class
from cera.cli.trainer_arguments import as_list
from cera.runs.checkpoint_io import AtomicCheckpointIO
from cera.runs.files import replacing
from cera.runs.loggers import MetricsCSV, RunTensorBoard

STRATEGIES_WITH_OWN_IO = ("deepspeed", "fsdp")
"""Strategies, by a part of their names, that write checkpoints themselves."""


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run directory, as the run was started."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the resolved configuration on the first rank; a resumed run keeps the file that is there."""
        path = Path(trainer.default_root_dir) / "config.yaml"
        if stage == "fit" and trainer.is_global_zero and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as unfinished:
                self.parser.save(self.config, str(unfinished), skip_unset=False, multifile=False, overwrite=True)


def trainer_settings(config: Namespace, subcommand: str, run: ChosenRun) -> tuple[dict[str, Any], Checkpoints | None]:
    """Return the arguments that replace the configured ones of the trainer, and the callback that saves checkpoints.

    Args:
        config: Configuration of the subcommand, in which ``trainer`` holds objects.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        run: The run directory.
    """
    trainer = config.trainer
    settings: dict[str, Any] = {}
    checkpoints: Checkpoints | None = None
    user_callbacks: list[Callback] = as_list(trainer.callbacks)
    callbacks: list[Callback] = [] if trainer.enable_progress_bar is False else [Progress()]
    if subcommand == "fit":
        callbacks += [RunRecord(run.directory, run.resumed), AdapterFile(run.directory)]
        if trainer.enable_checkpointing is not False:
            checkpoints = Checkpoints(run.directory / "checkpoints", config.checkpoint_every, run.resumed)
            callbacks.append(checkpoints)
        callbacks.append(Summary(run.directory, config.answer_tokens))  # last, when everything is saved
        if not any(isinstance(callback, Checkpoint) for callback in user_callbacks):
            settings["enable_checkpointing"] = False  # Lightning's own checkpoints; Checkpoints replaces them
        settings["logger"] = _loggers(trainer.logger, run)
    if not _writes_checkpoints_itself(trainer.strategy):
        settings["plugins"] = [*as_list(trainer.plugins), AtomicCheckpointIO()]
    return {**settings, "callbacks": [*callbacks, *user_callbacks]}, checkpoints


def _loggers(configured: Any, run: ChosenRun) -> list[Logger]:
    """Return ``metrics.csv``, TensorBoard, and the configured loggers.

    Args:
        configured: ``trainer.logger``: loggers, ``True`` or ``None`` for none of the user's own, or ``False`` for
            ``metrics.csv`` alone. A TensorBoard logger replaces the run's own.
        run: The run directory.
    """
    users = [] if configured is True or configured is False else as_list(configured)
    loggers: list[Logger] = [MetricsCSV(run.directory), *users]
    if configured is not False and not any(isinstance(logger, TensorBoardLogger) for logger in users):
        loggers.insert(0, RunTensorBoard(run.directory))
    return loggers


def place_loggers(configured: Any, earlier: str | None, directory: Path) -> None:
    """Let loggers write into the run directory if they would write into the working directory by default.

    Args:
        configured: ``trainer.logger`` before objects are made; its ``save_dir`` arguments are changed.
        earlier: The run directory that the configuration names, if it is another run's ``config.yaml``.
        directory: The run directory.
    """
    for logger in as_list(configured):
        arguments = getattr(logger, "init_args", None)
        if arguments is None or "save_dir" not in arguments:
            continue
        save_dir = Path(arguments.save_dir or ".")
        default = inspect.signature(import_class(logger.class_path)).parameters["save_dir"].default
        if arguments.save_dir == default:
            arguments.save_dir = str(directory / save_dir)
        elif earlier is not None and save_dir.is_relative_to(earlier):
            arguments.save_dir = str(directory / save_dir.relative_to(earlier))


def _writes_checkpoints_itself(strategy: Any) -> bool:
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    return any(part in name.lower() for part in STRATEGIES_WITH_OWN_IO)
