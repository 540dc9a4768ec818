"""Where a run is kept: ``runs/NAME``, then ``runs/NAME-2``, ... so that no run overwrites another.

A run directory holds ``config.yaml``, ``environment.json``, ``metrics.csv``, TensorBoard events, ``checkpoints/`` and
``adapter/``: all that studies and notebooks read.
"""

import os
import re
from pathlib import Path

from cera.checkpoint import CheckpointError, newest_checkpoint

RUN_DIR = "CERA_RUN_DIR"
"""Environment variable by which the first process tells those it starts which directory was chosen."""


def choose(runs: str | Path, name: str, resume: bool) -> Path:
    """The directory for a run called ``name`` below ``runs``.

    Args:
        runs: The directory of all runs.
        name: The run's name.
        resume: Whether an earlier run of that name is to be continued: then the newest with a checkpoint.

    Raises:
        CheckpointError: There is nothing to resume.
    """
    if RUN_DIR in os.environ:
        return Path(os.environ[RUN_DIR])
    earlier = _numbered(Path(runs), name)
    if resume:
        found = [path for _, path in sorted(earlier.items()) if newest_checkpoint(path / "checkpoints")]
        if not found:
            raise CheckpointError(f"--ckpt_path last: no run of the name {name!r} in {runs} has a checkpoint.")
        chosen = found[-1]
    elif not earlier:
        chosen = Path(runs) / name
    else:
        chosen = Path(runs) / f"{name}-{max(earlier) + 1}"
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:  # processes of an outside launcher choose each for itself, alike
        os.environ[RUN_DIR] = str(chosen)
    return chosen


def _numbered(runs: Path, name: str) -> dict[int, Path]:
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    matches = ((pattern.fullmatch(path.name), path) for path in (runs.iterdir() if runs.is_dir() else ()))
    return {int(match[1] or 1): path for match, path in matches if match and any(path.iterdir())}
