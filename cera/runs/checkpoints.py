"""Checkpoint files that are whole or not there, and are read without unpickling code."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


class CheckpointError(ValueError):
    """A checkpoint is broken, or not of this run; the message says which and why."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, and renames; reads tensors and plain data only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``. Killed at any moment, it leaves the file that was there before."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            CheckpointError: The file is missing, truncated, damaged, foreign, or holds Python objects.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint.")
        size = path.stat().st_size
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
                # torch trusts these flags, writes none, and a wrong one makes it return memory it never filled
                damaged = damaged or next((i.filename for i in archive.infolist() if i.external_attr), None)
            checkpoint = None if damaged else torch.load(path, map_location=map_location, weights_only=True)
        except zipfile.BadZipFile as error:
            raise CheckpointError(f"{path} is not a checkpoint, or is truncated ({size} bytes: {error}).") from error
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} holds Python objects beside tensors and plain data, and is not read for safety ({error})."
            ) from error
        except Exception as error:  # zipfile and torch raise half a dozen kinds for one wrong byte
            raise CheckpointError(f"{path} is not a checkpoint, or is damaged ({error!r}).") from error
        if damaged:
            raise CheckpointError(f"{path} is damaged: the checksum of {damaged} or its flags are wrong.")
        if not isinstance(checkpoint, dict) or "cera" not in checkpoint:
            raise CheckpointError(f"{path} is not a checkpoint of this framework (it has no `cera` entry).")
        return checkpoint


def differences(theirs: str, ours: str) -> list[str]:
    """Where two JSON objects differ, one line a key: what a checkpoint was made with against what it is loaded into."""
    there, here = json.loads(theirs), json.loads(ours)
    keys = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))
    return [f"{k}: {there.get(k)} there, {here.get(k)} here" for k in keys]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write a file to, renamed to it at the end, which outlives a power cut.

    After an exception ``path`` is as it was.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    yield unfinished
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_directory(path.parent)


def sync_directory(folder: Path) -> None:
    """Make renames in ``folder`` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file below ``folder`` to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in ``folder`` (``step=N.ckpt``), or ``None``."""
    found = {int(path.stem.partition("=")[2]): path for path in folder.glob("step=*.ckpt") if path.stem[5:].isdigit()}
    return found[max(found)] if found else None
