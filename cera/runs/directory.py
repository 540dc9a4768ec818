"""Where a run is kept: ``runs/NAME``, then ``runs/NAME@2``, ... so that no run overwrites another.

A run directory holds ``config.yaml``, ``environment.json``, ``metrics.csv``, TensorBoard events, ``checkpoints/`` and
``adapter/``: all that studies and notebooks read.
"""

import os
import re
from pathlib import Path

from cera.runs.checkpoints import CheckpointError

RUN_DIR = "CERA_RUN_DIR"
"""Environment variable by which the first process tells those it starts which directory was chosen."""


def choose(runs: str | Path, name: str, resume: bool) -> Path:
    """The directory for a run called ``name`` below ``runs``.

    Processes that Lightning starts are told the first one's choice. Processes of an outside launcher (torchrun,
    SLURM) start at the same time and cannot number a directory alike: theirs is ``runs/NAME``, which must be new.

    Args:
        runs: The directory of all runs.
        name: The run's name.
        resume: Whether the newest run of that name is to be continued.

    Raises:
        CheckpointError: There is nothing to resume.
        ValueError: ``name`` cannot be a directory's, or, under an outside launcher, the directory is there already.
    """
    if not re.fullmatch(r"[\w.=+-]+", name):
        raise ValueError(f"name must be of letters, digits and . _ = + -, got {name!r}.")
    if RUN_DIR in os.environ:
        return Path(os.environ[RUN_DIR])
    earlier = _numbered(Path(runs), name)
    rank, world_size = _outside_launcher()
    if resume:
        if not earlier:
            raise CheckpointError(f"--ckpt_path last: there is no run of the name {name!r} in {runs}.")
        chosen = earlier[max(earlier)]
    elif not earlier or world_size > 1:
        chosen = Path(runs) / name
        if chosen in earlier.values() and rank == 0:
            raise ValueError(
                f"{chosen} holds a run already: give another --name, or continue it with --ckpt_path last."
            )
    else:
        chosen = Path(runs) / f"{name}@{max(earlier) + 1}"
    if world_size == 1:
        os.environ[RUN_DIR] = str(chosen)
    return chosen


def _outside_launcher() -> tuple[int, int]:
    """(rank, number of processes) as torchrun or SLURM tell them; (0, 1) without."""
    for rank, world_size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and world_size in os.environ:
            return int(os.environ[rank]), int(os.environ[world_size])
    return 0, 1


def _numbered(runs: Path, name: str) -> dict[int, Path]:
    pattern = re.compile(re.escape(name) + r"(?:@(\d+))?")
    matches = ((pattern.fullmatch(path.name), path) for path in (runs.iterdir() if runs.is_dir() else ()))
    return {int(match[1] or 1): path for match, path in matches if match and path.is_dir() and any(path.iterdir())}
