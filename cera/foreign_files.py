"""Reads small files that others wrote: whatever is wrong with one ends in a ``FileError`` of one line that names it.

Example:
    >>> read_json_object(Path("my-adapter/adapter_config.json"))["peft_type"]
    'CERA'
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

LONGEST_REASON = 300
"""Maximum number of characters of another library's message that is repeated in ours."""


class FileError(ValueError):
    """A file or directory is not what it should be; the message names it, and what would be right."""


def require_file(path: Path) -> Path:
    """Return ``path`` if it is a regular file, or a link to one.

    Raises:
        FileError: It is missing, or a directory or anything else that would not end when it is read.
    """
    if not path.exists():
        raise FileError(f"{path} is missing.")
    if not path.is_file():
        raise FileError(f"{path} must be a file, and is {'a directory' if path.is_dir() else 'something else'}.")
    return path


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file; raise ``FileError`` if it cannot be read."""
    try:
        return require_file(path).read_text(encoding="utf-8")
    except FileError:
        raise
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read as text: {one_line(error)}.") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        FileError: The file cannot be read, is no JSON object, or has numbers that JSON does not know (NaN, Infinity).
    """
    try:
        content = json.loads(require_file(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} cannot be read as JSON: {one_line(error)}.") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} must hold a JSON object, and holds a {type(content).__name__}.")
    return content


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file for PyTorch, as ``safetensors.safe_open`` does.

    Raises:
        FileError: The file is missing, or it is not a whole safetensors file.
    """
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise FileError(f"{path} is not a whole safetensors file: {one_line(error)}.") from error


def one_line(error: BaseException) -> str:
    """Return the message of an error of another library on one line, shortened, without a full stop.

    An operating system's error is given without its number; a message that says little gets the error's name.
    """
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    text = " ".join(text.split())
    if len(text) > LONGEST_REASON:
        text = f"{text[:LONGEST_REASON]}..."
    if " " not in text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text.removesuffix(".")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
