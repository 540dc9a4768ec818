"""The run directory of a training command, and the checkpoint that it resumes from."""

from pathlib import Path
from typing import NamedTuple

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info

from cera.cli.errors import UsageError
from cera.runs import directory as run_directory
from cera.runs.checkpoints import CheckpointError, newest_checkpoint, step_of


class ChosenRun(NamedTuple):
    """A run directory, and the step that the run resumes from; ``None`` if it does not resume."""

    directory: Path
    resume_from: int | None


def choose_run(config: Namespace, subcommand: str) -> ChosenRun:
    """Choose the run directory, and write it and the path of the checkpoint into the configuration.

    Args:
        config: Parsed configuration of the subcommand; ``ckpt_path`` may be ``last``.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        CheckpointError: There is no such checkpoint, or nothing to resume.
        UsageError: The name of the run is not valid, or the directory is in use.
    """
    resume = config.ckpt_path == "last"
    try:
        directory = run_directory.choose(config.runs, config.name, resume)
    except CheckpointError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    config.trainer.default_root_dir = str(directory)
    if not resume:
        if config.ckpt_path is not None and not Path(config.ckpt_path).exists():
            raise CheckpointError(f"ckpt_path must be `last` or a checkpoint; there is none at {config.ckpt_path}.")
        return ChosenRun(directory, None)
    newest = newest_checkpoint(directory / "checkpoints")
    if newest is None and subcommand != "fit":
        raise CheckpointError(f"--ckpt_path last: {directory} has no checkpoint.")
    if newest is None:  # starting again with the same seed repeats what the run had done
        rank_zero_info(f"{directory} ended before its first checkpoint: it starts again, in the same directory.")
        config.ckpt_path = None
        return ChosenRun(directory, 0)
    config.ckpt_path = str(newest)
    return ChosenRun(directory, step_of(newest) or 0)
