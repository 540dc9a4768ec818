"""Datasets and tasks that a configuration file names under one of its keys, for commands that read nothing else of it.

rows = chat_rows(Path("configs/parts/tunnel_held_out.yaml"))  # its data.validation, or else its data.dataset
rows = chat_rows(Path("chats.jsonl"))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from cera.cli.compose import compose
from cera.data.datasets import ChatDataset
from cera.data.rows import DataError

CONFIGURATIONS = (".yaml", ".yml")
"""Suffixes of configuration files."""

KEYS = ("data.validation", "data.dataset")
"""Where a configuration of a run has rows; the held-out ones first."""


def chat_rows(file: Path | None) -> ChatDataset | None:
    """Return the rows of a chat file, or those that a configuration names; ``None`` without a file.

    Raises:
        DataError: The configuration names no dataset.
        ValueError: It is missing or no configuration.
    """
    if file is None:
        return None
    return configured(file, KEYS, ChatDataset) if file.suffix in CONFIGURATIONS else ChatDataset(data_files=str(file))


def configured(path: Path, keys: Sequence[str], *kinds: type) -> Any:
    """Return what a configuration has under the first of ``keys`` that it has.

    Args:
        path: The file.
        keys: Dotted keys.
        kinds: Classes of which the value names a subclass.

    Raises:
        DataError: The file has no such key, or its value is of no such class.
        ValueError: The file is missing or no configuration.
    """
    configuration = compose(path)
    for key in keys:
        part: Any = configuration
        for name in key.split("."):
            part = part.get(name) if isinstance(part, dict) else None
        if part is not None:
            return _instantiate(part, f"{path}: {key}", kinds)
    raise DataError(f"{path} describes no set of rows: it has no {' and no '.join(keys)}.")


def _instantiate(part: Any, where: str, kinds: tuple[type, ...]) -> Any:
    set_parsing_settings(subclasses_enabled=list(kinds))  # a configuration names a subclass of one
    parser = ArgumentParser(exit_on_error=False)
    expected: Any = kinds[0]
    for kind in kinds[1:]:
        expected |= kind
    parser.add_argument("--set", type=expected)
    try:
        return parser.instantiate(parser.parse_object({"set": part})).set
    except (ArgumentError, ValueError) as error:
        names = " and no ".join({"ChatDataset": "dataset"}.get(kind.__name__, kind.__name__.lower()) for kind in kinds)
        raise DataError(f"{where} is no {names}: {error}") from error
