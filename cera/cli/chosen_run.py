"""The run directory of a training command, and the checkpoint that it starts from."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info

from cera.cli.errors import UsageError
from cera.cli.same_run import check_same_run
from cera.runs.checkpoints import CheckpointError, newest_checkpoint, step_of
from cera.runs.directory import choose, reserve
from cera.runs.journal import NOTHING, Journal
from cera.runs.lock import DirectoryLock


class ChosenRun(NamedTuple):
    """The run directory of a command, and the run that it goes on from.

    Attributes:
        directory: Where the command writes.
        resumed: Journal of the checkpoint that a run resumes from in its own directory; ``None`` if it does not resume.
        earlier: The run whose checkpoint the command takes, or that starts again; ``None`` for a new run.
        lock: The lock on the directory that a fit holds.
    """

    directory: Path
    resumed: Journal | None = None
    earlier: Path | None = None
    lock: DirectoryLock | None = None

    def release(self) -> None:
        """Let other processes write to the directory."""
        if self.lock is not None:
            self.lock.release()


def choose_run(config: Namespace, subcommand: str, settings: dict[str, Any]) -> ChosenRun:
    """Choose the run directory, and write it and the path of the checkpoint into the configuration.

    ``fit`` makes a new run, or resumes one with ``ckpt_path``. The other subcommands take a checkpoint of a run that
    exists, the newest one by default, and write into the directory of that run.

    Args:
        config: Parsed configuration of the subcommand; ``ckpt_path`` may be ``last``.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        settings: The configuration as plain data, which is held against that of the run that the command goes on from.

    Raises:
        CheckpointError: There is no such checkpoint, or nothing to resume.
        UsageError: The name of the run is not valid, another process writes to the directory, or the settings are of
            another run.
    """
    given = None if config.ckpt_path in (None, "last") else Path(config.ckpt_path)
    if given is not None and not given.exists():
        raise CheckpointError(f"ckpt_path must be `last` or a checkpoint; there is none at {given}.")
    if given is not None:
        check_same_run(_run_of(given), settings, subcommand)
    with ExitStack() as on_error:
        run = _fitted_run(config, given, on_error) if subcommand == "fit" else _measured_run(config, subcommand, given)
        if given is None and run.earlier is not None:
            check_same_run(run.earlier, settings, subcommand)
        on_error.pop_all()
    config.trainer.default_root_dir = str(run.directory)
    return run


def _fitted_run(config: Namespace, given: Path | None, on_error: ExitStack) -> ChosenRun:
    """Lock and return a new run, or with ``ckpt_path: last`` the newest run that has a checkpoint."""
    resume = config.ckpt_path == "last"
    with _usage_errors():
        directory, lock = reserve(config.runs, config.name, resume)
    if lock is not None:
        on_error.callback(lock.release)
    if not resume:
        return ChosenRun(directory, earlier=given and _run_of(given), lock=lock)
    newest = newest_checkpoint(directory / "checkpoints")
    if newest is None:  # starting again with the same seed repeats what the run had done
        rank_zero_info(f"{directory} ended before its first checkpoint: it starts again, in the same directory.")
        config.ckpt_path = None
        return ChosenRun(directory, NOTHING, directory, lock)
    rank_zero_info(f"fit resumes {newest}")
    config.ckpt_path = str(newest)
    journal = Journal.read(newest) or Journal.before_step(directory, step_of(newest) or 0)
    return ChosenRun(directory, journal, directory, lock)


def _measured_run(config: Namespace, subcommand: str, given: Path | None) -> ChosenRun:
    """Return the run of the checkpoint ``given``, or the newest run that has a checkpoint."""
    if given is None:
        try:
            with _usage_errors():
                given = newest_checkpoint(choose(config.runs, config.name, resume=True) / "checkpoints")
        except CheckpointError:
            given = None
        if given is None:
            raise CheckpointError(
                f"{subcommand} needs a trained run: no run of the name {config.name!r} in {config.runs} has a "
                "checkpoint. Train one first, or give another --name, --runs or --ckpt_path."
            )
    rank_zero_info(f"{subcommand} takes {given}")
    config.ckpt_path = str(given)
    return ChosenRun(_run_of(given), earlier=_run_of(given))


def _run_of(checkpoint: Path) -> Path:
    """Return the run that a checkpoint lies in, or the folder of one that lies elsewhere."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Raise what is wrong with the name or the directory as a ``UsageError``."""
    try:
        yield
    except CheckpointError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
