"""The directory of a run: ``runs/NAME``, then ``runs/NAME@2``, ... so that no run overwrites another.

A fit reserves its directory when it chooses it, and is its only writer until it ends (``cera.runs.lock``).

A run directory holds ``config.yaml``, ``environment.json``, ``metrics.csv``, TensorBoard events, ``checkpoints/`` and
``adapter/``. Studies and notebooks read nothing else.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from cera.runs.checkpoints import CheckpointError, newest_checkpoint
from cera.runs.lock import DirectoryInUse, DirectoryLock
from cera.runs.names import check_name

RUN_DIR = "CERA_RUN_DIR"
"""Environment variable with which the first process passes its choice to the processes that it starts."""


class RunDirectory(NamedTuple):
    """The directory of a run, and the lock on it; ``None`` in a process for which another one holds the lock."""

    path: Path
    lock: DirectoryLock | None


def choose(runs: str | Path, name: str, resume: bool) -> Path:
    """Return the directory for a run called ``name`` below ``runs``.

    Processes that Lightning starts use the first process's choice. Processes of an outside launcher (torchrun, SLURM)
    start at the same time and cannot agree on a number: they use ``runs/NAME``, which must be new.

    Args:
        runs: Directory of all runs.
        name: Name of the run.
        resume: Whether to continue the newest run of that name that has a checkpoint; the newest of all, if none has.

    Raises:
        CheckpointError: There is nothing to resume.
        ValueError: ``name`` is not a valid directory name, or an outside launcher's directory exists already.
    """
    check_name(name, "name")
    if RUN_DIR in os.environ:
        return Path(os.environ[RUN_DIR])
    chosen = _choice(Path(runs), name, resume)
    _pass_on(chosen)
    return chosen


def reserve(runs: str | Path, name: str, resume: bool) -> RunDirectory:
    """Choose a directory as ``choose`` does, make it if it is new, and lock it: the caller is its only writer.

    Runs of one name that start at the same time get different directories.

    Raises:
        DirectoryInUse: Another process writes to the run to resume, or to the directory of an outside launcher.
    """
    rank, world_size = outside_launcher()
    if RUN_DIR in os.environ or rank > 0:
        return RunDirectory(choose(runs, name, resume), None)
    while True:
        os.environ.pop(RUN_DIR, None)
        lock = DirectoryLock(choose(runs, name, resume))
        try:
            lock.acquire(new=not resume)
        except DirectoryInUse:
            if resume or world_size > 1:
                raise
            continue  # another run was quicker, and its number is taken now
        return RunDirectory(lock.folder, lock)


def _choice(runs: Path, name: str, resume: bool) -> Path:
    existing = _numbered_directories(runs, name)
    rank, world_size = outside_launcher()
    if resume:
        if not existing:
            raise CheckpointError(f"--ckpt_path last: there is no run of the name {name!r} in {runs}.")
        saved = {n: path for n, path in existing.items() if newest_checkpoint(path / "checkpoints")}
        return (saved or existing)[max(saved or existing)]
    if existing and world_size == 1:
        return runs / f"{name}@{max(existing) + 1}"
    chosen = runs / name
    if chosen in existing.values() and rank == 0:
        raise ValueError(f"{chosen} holds a run already: give another --name, or continue it with --ckpt_path last.")
    return chosen


def _pass_on(chosen: Path) -> None:
    """Pass the choice on to the processes that Lightning starts."""
    if outside_launcher()[1] == 1:
        os.environ[RUN_DIR] = str(chosen)


def outside_launcher() -> tuple[int, int]:
    """Return the rank and the number of processes that torchrun or SLURM set, or (0, 1)."""
    for rank, world_size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and world_size in os.environ:
            return int(os.environ[rank]), int(os.environ[world_size])
    return 0, 1


def _numbered_directories(runs: Path, name: str) -> dict[int, Path]:
    """Return the directories of the runs called ``name`` by number; ``runs/NAME`` is number 1, empty ones are free."""
    if not runs.is_dir():
        return {}
    pattern = re.compile(re.escape(name) + r"(?:@(\d+))?")
    matches = ((pattern.fullmatch(path.name), path) for path in runs.iterdir())
    return {int(match[1] or 1): path for match, path in matches if match and path.is_dir() and any(path.iterdir())}
