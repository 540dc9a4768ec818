"""Holds the fields of records and reports against their types, as these files may come from anyone.

Example:
    >>> check_fields({"key": 7}, RECORD, ("key",), "records.jsonl, line 3")
    Traceback (most recent call last):
    ...
    cera.evaluation.fields.RecordError: records.jsonl, line 3: key must be a string, got 7.
"""

import json
import sys
from collections.abc import Callable, Collection, Mapping
from reprlib import repr as short_repr
from typing import Any, NamedTuple

from cera.foreign_files import FileError, one_line


class RecordError(FileError):
    """A file of records or a report is wrong; the message names the file, the field, and what would be right."""


class Field(NamedTuple):
    """What a field must be.

    Attributes:
        fits: Whether a JSON value is of that kind.
        expected: The kind in words.
    """

    fits: Callable[[Any], bool]
    expected: str


def list_of(fits: Callable[[Any], bool], expected: str) -> Field:
    """Return the field of lists that are not empty and whose items fit."""
    return Field(
        lambda value: isinstance(value, list) and bool(value) and all(map(fits, value)), f"a list of {expected}"
    )


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_count(value: Any) -> bool:
    """Return whether a JSON value is a whole number from 0 to 2^63 - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_text(value: Any) -> bool:
    """Return whether a JSON value is a string."""
    return isinstance(value, str)


def _is_interval(value: Any) -> bool:
    return isinstance(value, dict) and all(is_number(value.get(name)) for name in ("value", "low", "high"))


TEXT = Field(is_text, "a string")
OBJECT = Field(lambda value: isinstance(value, dict), "an object")
NAMES = list_of(lambda value: value is None or is_text(value), "strings and nulls, one for each sample")
RECORD = {
    "key": TEXT,
    "groups": Field(
        lambda value: isinstance(value, dict) and all(map(is_text, value.values())),
        "an object whose values are strings",
    ),
    "prompt": TEXT,
    "gold": TEXT,
    "samples": list_of(is_text, "strings"),
    "answers": NAMES,
    "how": NAMES,
    "correct": list_of(
        lambda value: isinstance(value, bool) or (is_number(value) and 0 <= value <= 1),
        "true, false, or numbers in [0, 1], one for each sample",
    ),
    "tokens": list_of(is_count, "whole numbers, one for each sample"),
    "finished": list_of(lambda value: isinstance(value, bool), "true or false, one for each sample"),
    "seconds": Field(lambda value: is_number(value) and value >= 0, "a number of at least 0"),
    "details": list_of(OBJECT.fits, "objects, one for each sample"),
}
"""The fields of a record."""
WHOLE_RECORD = tuple(RECORD.keys() - {"details"})
"""The fields that each record of an evaluation has; a task may add ``details``."""
REPORT = {
    "metrics": Field(
        lambda value: isinstance(value, dict) and bool(value) and all(map(_is_interval, value.values())),
        "an object of metrics, each with the numbers value, low and high",
    ),
    "settings": OBJECT,
}
"""The fields of a report (``eval.json``) that are read again."""


METRIC = "exact_match"
"""The metric of lm-eval's samples."""
SAMPLE = {
    "doc_id": Field(lambda value: is_text(value) or is_count(value), "a number or a string"),
    "target": Field(lambda value: is_text(value) or is_number(value), "a string or a number"),
    "filter": TEXT,
    "resps": list_of(list_of(is_text, "strings").fits, "lists of strings"),
    "filtered_resps": Field(lambda value: isinstance(value, list) and bool(value), "a list that is not empty"),
    METRIC: Field(lambda value: isinstance(value, bool) or (is_number(value) and value in (0, 1)), "0 or 1"),
}
"""The fields of a line of lm-eval's ``--log_samples`` that are read."""


def check_fields(values: Mapping[str, Any], fields: Mapping[str, Field], required: Collection[str], where: str) -> None:
    """Check the fields of an object.

    Args:
        values: The object.
        fields: What each field must be. The object may have others.
        required: Names of the fields that it must have.
        where: File and line, for error messages.

    Raises:
        RecordError: A field is missing or of another type.
    """
    for name, field in fields.items():
        if name not in values:
            if name in required:
                raise RecordError(f"{where}: {name} is missing; it must be {field.expected}.")
        elif not field.fits(values[name]):
            raise RecordError(f"{where}: {name} must be {field.expected}, got {short_repr(values[name])}.")


def parse_object(line: str | bytes, where: str) -> dict[str, Any]:
    """Return the object in a line of JSON.

    Raises:
        RecordError: The line is no JSON object, or has numbers that JSON does not know (NaN, Infinity).
    """
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: not JSON that can be read: {one_line(error)}.") from error
    if not isinstance(value, dict):
        raise RecordError(f"{where}: a JSON object is expected, got {short_repr(value)}.")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
