"""Files that are either whole or absent, even if the process is killed or the power fails while they are written.

Example:
    >>> with replacing(Path("report.json")) as unfinished:
    ...     unfinished.write_text(json.dumps(report))
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to, which is flushed to disk and renamed to ``path`` at the end.

    After an exception ``path`` is as it was before.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    yield unfinished
    give_usual_mode(unfinished)
    sync_file(unfinished)
    unfinished.replace(path)
    sync_directory(path.parent)


def give_usual_mode(path: Path) -> None:
    """Give a file, or all files of a directory, the mode of new files; safetensors makes files that others cannot read.

    Files that cannot be executed have mode 0666 less the process's umask.
    """
    mask = os.umask(0)
    os.umask(mask)
    for file in path.iterdir() if path.is_dir() else [path]:
        if file.is_file():
            file.chmod(0o666 & ~mask)


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed in ``replacing`` has left in ``folder`` and below."""
    for path in folder.rglob(".*.unfinished"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def sync_file(path: Path) -> None:
    """Flush a file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(folder: Path) -> None:
    """Flush the entries of ``folder`` to disk, so that renames in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file below ``folder`` to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync_file(path)
