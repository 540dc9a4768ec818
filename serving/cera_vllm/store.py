"""Private copies of adapters, by content: what is done to a directory after it was loaded changes no answer.

vLLM reads a directory again when an adapter comes back after it was evicted, and knows cached prefixes by its path.
"""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cera_vllm.adapter_files import CONFIG_FILE, WEIGHTS_FILE, AdapterError, read_branches, read_settings

BLOCK = 2**20
"""Bytes that are copied at a time."""


class AdapterStore:
    """A private folder of copies, each in a folder named by its SHA-256. It goes when the process ends.

    Attributes:
        root: The folder, readable by this user alone.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=f"cera-vllm-{os.getpid()}-")
        self.root = Path(self._folder.name).resolve()
        self._held: Counter[Path] = Counter()
        self._holds: Counter[Path] = Counter()

    def take(self, folder: Path, root: Path | None = None) -> Path:
        """Copy an adapter, check the copy, and return its folder; the same content is held once.

        Args:
            folder: The adapter's directory.
            root: The directory outside of which no file may lie, links followed; ``None`` allows any.

        Raises:
            AdapterError: A file is missing, lies outside of ``root``, or the adapter is not whole.
        """
        incoming = Path(tempfile.mkdtemp(prefix="incoming-", dir=self.root))
        try:
            digest = hashlib.sha256()
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                size = _copy(folder / name, incoming / name, root, digest)
                digest.update(f"{name} {size}".encode())
            read_branches(incoming, read_settings(incoming))
            copy = self.root / digest.hexdigest()
            if not copy.exists():
                incoming.rename(copy)
            return copy
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def holds(self, folder: str | Path) -> bool:
        """Return whether ``folder`` is a copy in this store, or was one."""
        return Path(folder).parent == self.root

    @contextmanager
    def hold(self, copy: Path) -> Iterator[None]:
        """Keep a copy during the block, whatever ``remove`` is told.

        Raises:
            AdapterError: The copy was removed before.
        """
        if not copy.is_dir():
            raise AdapterError("the adapter was unloaded.")
        self._held[copy] += 1
        self._holds[copy] += 1
        try:
            yield
        finally:
            self._held[copy] -= 1

    def is_held(self, copy: Path) -> bool:
        """Return whether a copy is held now."""
        return self._held[copy] > 0

    def holds_of(self, copy: Path) -> int:
        """Return how often a copy was held so far."""
        return self._holds[copy]

    def remove(self, copies: Iterable[Path]) -> None:
        """Delete copies."""
        for copy in copies:
            del self._held[copy], self._holds[copy]
            shutil.rmtree(copy, ignore_errors=True)


def _copy(source: Path, target: Path, root: Path | None, digest: "hashlib._Hash") -> int:
    """Copy a file, feed ``digest`` with it, and return its size in bytes."""
    if not source.exists() and source.name == WEIGHTS_FILE:
        pickled = [name for name in ("adapter_model.bin", "adapter_model.pt") if (source.parent / name).exists()]
        if pickled:
            raise AdapterError(f"{pickled[0]} is pickled, and is not read: save the adapter as {WEIGHTS_FILE}.")
    size = 0
    try:
        with os.fdopen(_open_within(source, root), "rb") as file, target.open("xb") as copy:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise AdapterError(f"{source.name} is no file.")
            while block := file.read(BLOCK):
                size += copy.write(block)
                digest.update(block)
    except OSError as error:
        reason = "is missing" if error.errno in (errno.ENOENT, errno.ENOTDIR) else f"cannot be read ({error.strerror})"
        raise AdapterError(f"{source.name} {reason}.") from error
    return size


def _open_within(file: Path, root: Path | None) -> int:
    """Open a file for reading, which must lie within ``root`` with all links followed, and return its descriptor.

    After links are followed no further one may be met, so that nobody can put one there in between.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe does not block the opening
    if root is None:
        return os.open(file, flags)
    root, file = root.resolve(), file.resolve()
    if not file.is_relative_to(root):
        raise AdapterError(f"{file.name} lies outside of the allowed directory.")
    place = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    parts = file.relative_to(root).parts
    for depth, part in enumerate(parts):
        kind = flags if depth == len(parts) - 1 else os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            further = os.open(part, kind | os.O_NOFOLLOW, dir_fd=place)
        finally:
            os.close(place)
        place = further
    return place
