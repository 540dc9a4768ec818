"""Lightning's checkpoint files, written whole and read without unpickling code.

Example:
    >>> Trainer(plugins=[AtomicCheckpointIO()])
"""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cera.runs.checkpoints import CheckpointError
from cera.runs.files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, flushes it to disk and renames it; reads tensors and plain data only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``. A process killed meanwhile leaves the previous file in place."""
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
            CheckpointError: The file is missing, truncated, damaged, of another program, or holds Python objects.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint.")
        size = path.stat().st_size
        try:
            damaged = _damaged_member(path)
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


def _damaged_member(path: Path) -> str | None:
    """Return the name of a damaged file in a checkpoint's archive, or ``None``."""
    with zipfile.ZipFile(path) as archive:
        # torch writes no flags (external_attr), but trusts them: a wrong one makes it return memory it never filled
        return archive.testzip() or next((i.filename for i in archive.infolist() if i.external_attr), None)
