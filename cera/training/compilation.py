"""DeepSpeed's one-off compilation of its operations: announced, and not waited for if it was interrupted.

torch builds an extension in a folder of its cache under a file ``lock``, and whoever comes next waits until that file
is gone. A process that is killed while it compiles leaves it there, and every later run would wait for ever.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from cera.foreign_files import FileError

STALE_AFTER = 3600.0
"""Seconds after which a lock that no process here holds is removed. A younger one may be held on another machine, or in
another container, that shares the cache."""


class CompilationLocked(FileError):
    """An extension is locked by a process that cannot be found; the message names the file and what to do."""


def prepare_compilation(operations: list[str], shared: bool = False) -> None:
    """Announce the compilation of operations, if none is there yet, and see to locks that were left behind.

    Args:
        operations: Names of the extensions that may be compiled.
        shared: Whether other machines of the same run may be compiling, too: a young lock is then waited for.

    Raises:
        CompilationLocked: A lock is held by no process on this machine, and too young to be removed.
    """
    folders = [folder for folder in extension_folders() if folder.name in operations]
    if not any(file for folder in folders for file in folder.glob("*.so")):
        rank_zero_info(
            f"DeepSpeed compiles its operations once, which takes a minute or more, and keeps them in {cache_root()}."
        )
    for lock in (folder / "lock" for folder in folders):
        if lock.exists():
            _see_to(lock, shared)


def cache_root() -> Path:
    """Return the folder of torch's compiled extensions."""
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def extension_folders() -> list[Path]:
    """Return the folders of all extensions in the cache: below one per Python and accelerator, or right in the root."""
    root = cache_root()
    return sorted(folder for pattern in ("*", "*/*") for folder in root.glob(pattern) if folder.is_dir())


def holders(file: Path) -> Iterator[int]:
    """Yield the processes on this machine that have ``file`` open, where the system tells (``/proc``)."""
    target = os.path.realpath(file)
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            link = os.readlink(descriptor)
        except OSError:  # the process has ended, or is another user's
            continue
        if link == target:
            yield int(descriptor.parts[2])


def _see_to(lock: Path, shared: bool) -> None:
    """Wait for a live compilation, remove a lock that was left behind, or raise ``CompilationLocked``."""
    try:
        age = time.time() - max(file.stat().st_mtime for file in (lock, *lock.parent.iterdir()))
        ours = lock.stat().st_uid == os.getuid()
    except FileNotFoundError:  # it has been released
        return
    process = next(holders(lock), None)
    if process is not None:
        rank_zero_info(f"Waiting for process {process}, which compiles {lock.parent.name} ({lock}).")
    elif ours and age > STALE_AFTER:
        lock.unlink(missing_ok=True)
        rank_zero_info(f"Removed {lock}, which an interrupted compilation left {age / 3600:.1f} hours ago.")
    elif shared:
        rank_zero_info(f"Waiting for {lock}; if no machine compiles, an interrupted run left it: remove it then.")
    else:
        raise CompilationLocked(
            f"{lock} says that {lock.parent.name} is being compiled, but no process on this machine holds it: an "
            f"interrupted run left it, or another machine or container compiles. Remove it if none does: rm {lock}"
        )
