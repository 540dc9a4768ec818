"""Trains, validates, tests or predicts from a configuration file.

    cera train --config cera://smol_cera
    cera train --config cera://smol_cera --model.adapter.init_args.r=32 --trainer.max_steps=10
    cera train --config cera://smol_cera --ckpt_path last
    cera train validate --config cera://smol_cera

Without a subcommand it fits. ``--print_config`` shows the whole configuration. In a clone, ``python train.py`` is the
same command.
"""

import logging
import os
import sys
import warnings

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # before deepspeed is imported
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # bitsandbytes logs missing optional CPU kernels on import

from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cera.callbacks import Diverged
from cera.cli.errors import UsageError, error_line
from cera.cli.preflight import MissingRequirement
from cera.cli.training_cli import Reused, TrainingCLI
from cera.data import DataError, TemplateError
from cera.evaluation.records import RecordError
from cera.foreign_files import FileError
from cera.runs.checkpoints import CheckpointError
from cera.runs.directory import RUN_DIR
from cera.runs.signals import Stopped, raise_stopped, stop_signals
from cera.training.together import Companion

SUBCOMMANDS = ("fit", "validate", "test", "predict")
MISTAKES = (
    UsageError,
    FileError,
    CheckpointError,
    DataError,
    RecordError,
    TemplateError,
    MissingRequirement,
    MisconfigurationException,
)
"""Errors that are reported in one line. Any other ``ValueError`` may come from within a run and keeps its traceback."""


def main(arguments: list[str]) -> int:
    """Run the command line, and return its exit status; see ``run``."""
    return run(arguments)


def run(arguments: list[str], companion: Companion | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The command line.
        companion: Of a run that is trained together with others (``cera train-together``); else ``None``.

    Returns:
        The exit status: 0 at the end, 2 after a user's mistake, 3 after ``DivergenceGuard`` stopped the run, 128 + N
        after signal N did. Only the first process returns the latter two; the processes that it started return 0,
        because Lightning kills the first one if another ends with anything else.
    """
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    if not arguments or arguments[0] not in SUBCOMMANDS:
        arguments = ["fit", *arguments]
    given_directory = os.environ.get(RUN_DIR)
    try:
        with stop_signals(raise_stopped):
            TrainingCLI(arguments, companion)
    except Reused as reused:
        print(reused, file=sys.stderr)
    except Stopped as stopped:
        return _end(stopped, 128 + stopped.signal)
    except MISTAKES as error:
        print(error_line(error), file=sys.stderr)
        return 2
    except Diverged as error:
        return _end(error_line(error), 3)
    finally:
        if given_directory is None:
            os.environ.pop(RUN_DIR, None)
    return 0


def _end(reason: object, status: int) -> int:
    """Print why the run ended early and return ``status``, in the first process; return 0 in the others."""
    if getattr(rank_zero_only, "rank", 0) != 0:
        return 0
    print(reason, file=sys.stderr)
    return status
