"""Files that a command writes where its user says: they are checked before any work, and never replaced in silence."""

from argparse import Namespace
from pathlib import Path

from cera.cli.errors import UsageError


def check_outputs(options: Namespace, *names: str) -> None:
    """Check the files that a command shall write, before any work.

    Args:
        options: Parsed options; ``overwrite`` says whether files that exist may be replaced.
        *names: Options that hold a file to write, or ``None`` for no file.

    Raises:
        UsageError: A file cannot be written, or exists; see ``check_output``.
    """
    for name in names:
        if getattr(options, name) is not None:
            check_output(getattr(options, name), name, options.overwrite)


def check_output(path: Path, name: str, overwrite: bool) -> None:
    """Raise ``UsageError`` if a file is a directory, lies below a file, or exists and must not be replaced.

    Args:
        path: The file to write.
        name: Name of the option, for the message.
        overwrite: Whether a file that exists may be replaced.
    """
    if path.is_dir():
        raise UsageError(f"--{name} must be a file, got the directory {path}.")
    if path.exists() and not overwrite:
        raise UsageError(f"--{name}: {path} exists already; give another file, or --overwrite to replace it.")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise UsageError(f"--{name} must be a file in a directory, got {path}: {parent} is a file.")
