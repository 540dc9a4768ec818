"""One writer to a directory: a lock that the operating system releases when its process ends, however it ends.

Example:
    >>> with DirectoryLock(Path("runs/smol_cera")):
    ...     ...  # no other process holds the lock
"""

import fcntl
import os
import socket
import warnings
from pathlib import Path
from types import TracebackType

LOCK = ".lock"
"""The file in a directory that is locked. It names the process that holds the lock, or that held it last."""

_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


class DirectoryInUse(ValueError):
    """Another process writes to the directory; the message names it."""


class DirectoryLock:
    """The right to write to a directory, held by one process at a time.

    The lock is not passed on to processes that this one forks, such as the workers of a data loader: it ends with
    this process even if those live on.

    Args:
        folder: The directory, which is created if need be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor: int | None = None

    def acquire(self, new: bool = False) -> None:
        """Take the lock, without waiting for it.

        Args:
            new: Take it only if the directory has never been locked.

        Raises:
            DirectoryInUse: Another process, or another lock of this process, holds it; or the directory is not new.
        """
        while self._descriptor is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = _locked(self.folder / LOCK, os.O_EXCL if new else 0)
        _held.add(self._descriptor)
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def release(self) -> None:
        """Give the lock back, if it is held. A directory in which nothing else has been written is removed."""
        if self._descriptor is None:
            return
        if [path.name for path in self.folder.iterdir()] == [LOCK]:
            (self.folder / LOCK).unlink()
            self.folder.rmdir()
        _held.discard(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> "DirectoryLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def _locked(path: Path, flags: int) -> int | None:
    """Return a descriptor of ``path`` with an exclusive lock, or ``None`` if its holder has just removed the file.

    Args:
        path: The file, which is created if need be.
        flags: Additional flags of ``os.open``.

    Raises:
        DirectoryInUse: Another descriptor holds the lock, or ``flags`` ask for a new file and there is one.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)
    except FileNotFoundError:  # the directory has just been removed
        return None
    except FileExistsError:
        raise DirectoryInUse(f"{path.parent} has been used by {path.read_text(errors='replace')}.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 300, 0).decode(errors="replace") or "another process"
        os.close(descriptor)
        raise DirectoryInUse(f"{path.parent} is in use by {holder}.") from None
    except OSError as error:
        warnings.warn(f"{path.parent} is not locked, as its file system has no locks ({error}).", stacklevel=4)
    try:
        current = path.stat().st_ino
    except FileNotFoundError:
        current = None
    if current != os.fstat(descriptor).st_ino:
        os.close(descriptor)
        return None
    return descriptor


def _close_in_child() -> None:
    """Close the locks that a forked process has inherited, which does not release them in its parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


def in_use(folder: Path) -> bool:
    """Return whether a process holds the lock on a directory; the lock is not taken, and nothing is written."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False
