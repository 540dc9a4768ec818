"""Expands ``~`` in the paths that users give, once, when a command line or a configuration is parsed.

A shell expands ``--runs ~/runs``, but neither ``--runs=~/runs`` nor what a configuration file says.
"""

import os
from argparse import Namespace  # the base class of jsonargparse's, which not all commands need
from pathlib import Path
from typing import Any

LONGEST = 255
"""Maximum number of bytes of the name of a file or directory."""

LONGEST_PATH = 4000
"""Maximum number of bytes of a path; Linux allows 4,095, and files in it need some."""

PATHS = frozenset({"runs", "out", "adapter", "base", "tokenizer", "ckpt_path", "data_files", "folder", "save_dir"})
"""Names of the options and arguments of classes that hold paths. ``base`` and ``tokenizer`` may be names on the hub."""


def expand_home(text: str) -> str:
    """Return a path with a leading ``~`` or ``~user`` replaced by the home directory.

    ``./~`` stays what it is, whereas ``pathlib`` would take it for the home directory, too.
    """
    return os.path.expanduser(text)


def user_path(text: str) -> Path:
    """Return the path that a user gives; the type of an option of ``argparse``."""
    return Path(expand_home(text))


def with_home(value: Any, name: str = "") -> Any:
    """Return a parsed configuration in which ``~`` is expanded in the values of all options in ``PATHS``.

    Args:
        value: The configuration, which is changed in place, or a value in it.
        name: Name of the option that has this value.

    Raises:
        ValueError: A path has a name in it that no file can have.
    """
    if isinstance(value, str) and name in PATHS:
        _check(value, name)
        return expand_home(value)
    if isinstance(value, list):
        return [with_home(item, name) for item in value]
    if isinstance(value, Namespace):
        for key, part in list(vars(value).items()):
            setattr(value, key, with_home(part, key))
    return value


def _check(path: str, name: str) -> None:
    if not path or "\0" in path:
        raise ValueError(f"{name} must be a path, got {path!r}.")
    if any(len(os.fsencode(part)) > LONGEST for part in path.split("/")) or len(os.fsencode(path)) > LONGEST_PATH:
        raise ValueError(f"{name} must be a path, got one of {len(path)} characters: {path[:LONGEST]!r}...")
