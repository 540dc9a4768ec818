"""The axes of a study: what its runs differ in, as named values.

An axis is written in a study's file in one of three ways:

    seed: [0, 1]                          # values of a key of the configuration, dotted or one of KEYS
    adapter:                              # named values: a file, or settings (`config` names a file among them)
      cera: ../adapters/cera.yaml
      lora-small: {config: ../adapters/lora.yaml, model.adapter.init_args.r: 8, number: 8}  # its place on a figure
    learning_rate:                        # other values for each value of an earlier axis
      by: adapter
      values: {cera: [3e-4, 1e-3], lora-small: [1e-4, 3e-4]}
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cera
from cera.foreign_files import FileError
from cera.runs.names import check_name
from cera.studies.lr_robustness import format_learning_rate

KEYS = {"learning_rate": "model.learning_rate", "rank": "model.adapter.init_args.r", "seed": "seed_everything"}
"""Short names of axes, and the keys that they stand for; the order of rows follows the seed (``data.seed``)."""

PREFIXES = {"model.learning_rate": "lr", "seed_everything": "seed"}
"""What stands before a value in the name of a run; otherwise it is the last part of the key."""

RESERVED = {"name", "runs", "ckpt_path", "config"}
"""Options of a run that are not settings of a study."""

DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)*\+?")


class StudyError(FileError):
    """A study's file asks for something impossible; the message names the field, its value and what would be right."""


@dataclass(frozen=True)
class AxisValue:
    """One value of an axis.

    Attributes:
        label: The value in names of runs and in tables.
        configs: Configuration files that runs with this value include.
        settings: Values by dotted key of the configuration.
        number: The value, if it is a number or its file gives one.
    """

    label: str
    configs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    number: float | None = None


@dataclass(frozen=True)
class Axis:
    """What runs differ in.

    Attributes:
        name: Name of the axis.
        by: The earlier axis that decides the values; ``None`` if they are the same for all runs.
        values: Values by the label on the axis ``by``, or under the key ``""``.
    """

    name: str
    by: str | None
    values: Mapping[str, tuple[AxisValue, ...]]

    def values_for(self, labels: Mapping[str, str]) -> tuple[AxisValue, ...]:
        """Return the values of runs that have these labels on the axes before this one."""
        return self.values["" if self.by is None else labels[self.by]]

    @property
    def labels(self) -> set[str]:
        """The labels of all values."""
        return {value.label for values in self.values.values() for value in values}


def parse_axes(content: Any, folder: Path) -> tuple[Axis, ...]:
    """Return the axes of a study.

    Args:
        content: The field ``axes`` of its file.
        folder: The folder that the names of files are relative to.

    Raises:
        StudyError: An axis is empty, unknown or in none of the three ways.
    """
    axes: dict[str, Axis] = {}
    for name, written in mapping("axes", content).items():
        where = f"axes.{name}"
        if isinstance(written, dict) and "by" in written:
            only_keys(where, written, {"by", "values"})
            by = written["by"]
            if by not in axes:
                raise StudyError(
                    f"{where}.by must name an earlier axis ({', '.join(axes) or 'there is none'}), got {by!r}."
                )
            groups = mapping(f"{where}.values", written.get("values"))
            if groups.keys() != axes[by].labels:
                raise StudyError(
                    f"{where}.values must have the values of the axis {by} ({', '.join(sorted(axes[by].labels))}), "
                    f"got {', '.join(sorted(groups))}."
                )
            values = {label: _values(f"{where}.values.{label}", name, group, folder) for label, group in groups.items()}
            axes[name] = Axis(name, by, values)
        else:
            axes[name] = Axis(name, None, {"": _values(where, name, written, folder)})
    return tuple(axes.values())


def _values(where: str, axis: str, written: Any, folder: Path) -> tuple[AxisValue, ...]:
    if not isinstance(written, list | dict) or not written:
        raise StudyError(f"{where} must be a list of values or a mapping of names to values, got {written!r}.")
    values = []
    if isinstance(written, dict):
        for label, value in written.items():
            values.append(_named_value(f"{where}.{label}", str(label), value, folder))
    else:
        key = KEYS.get(axis, axis)
        if "." not in key and key not in KEYS.values():
            raise StudyError(
                f"{where}: a list is of values of a key of the configuration, such as model.warmup, or of "
                f"{', '.join(KEYS)}; the values of {axis} must be a mapping of names to files or settings."
            )
        values = [_listed_value(where, key, value) for value in written]
    labels = [value.label for value in values]
    if len(set(labels)) < len(labels):
        repeated = next(label for label in labels if labels.count(label) > 1)
        raise StudyError(f"{where} has the value {repeated} twice.")
    return tuple(values)


def _named_value(where: str, label: str, value: Any, folder: Path) -> AxisValue:
    _check_label(where, label)
    if isinstance(value, str):
        return AxisValue(label, (config_file(where, value, folder),))
    settings = dict(mapping(where, value))
    config, written = settings.pop("config", None), settings.pop("number", None)
    files = () if config is None else (config_file(f"{where}.config", config, folder),)
    number = as_number(written)
    if written is not None and number is None:
        raise StudyError(f"{where}.number must be a number, by which the value is drawn, got {written!r}.")
    return AxisValue(label, files, check_settings(where, settings), number)


def _listed_value(where: str, key: str, value: Any) -> AxisValue:
    if not isinstance(value, str | int | float):
        raise StudyError(f"{where} must hold numbers or words, got {value!r}; other values need a name in a mapping.")
    number = as_number(value)
    shown = str(value) if number is None else format_number(number)
    label = PREFIXES.get(key, key.rpartition(".")[2].removesuffix("+")) + shown
    _check_label(where, label)
    return AxisValue(label, (), check_settings(where, {key: value}), number)


def _check_label(where: str, label: str) -> None:
    try:
        check_name(label, f"{where}: {label!r}, which becomes a part of names of runs,")
    except ValueError as error:
        raise StudyError(str(error)) from error


def as_number(value: Any) -> float | None:
    """Return the number that a value of YAML is, which reads ``3e-4`` as text; ``None`` if it is none."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def format_number(number: float) -> str:
    """Return a number as it stands in names: ``3e-4``, ``0.1``, ``64``."""
    return format_learning_rate(number) if 0 < abs(number) < 0.01 else f"{number:.10g}"


# Fields


def mapping(where: str, content: Any) -> Mapping[str, Any]:
    """Return a field that must be a mapping with at least one entry, whose keys are text."""
    if not isinstance(content, dict) or not content:
        raise StudyError(f"{where} must be a mapping with at least one entry, got {content!r}.")
    return {str(key): value for key, value in content.items()}


def only_keys(where: str, content: Mapping[str, Any], known: set[str]) -> None:
    """Raise ``StudyError`` if a mapping has a key that is not known."""
    for key in content:
        if key not in known:
            raise StudyError(f"{where} has the unknown key {key!r}; there are {', '.join(sorted(known))}.")


def check_settings(where: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return values by dotted key, if the keys can be those of a configuration."""
    for key in settings:
        if key in RESERVED or not DOTTED.fullmatch(key):
            reason = "which the study sets itself" if key in RESERVED else "which is no key of a configuration"
            raise StudyError(f"{where} has {key!r}, {reason}; settings are dotted keys such as trainer.max_steps.")
    return settings


def argument(value: Any) -> str:
    """Return a value of YAML as the value of an option of the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def as_options(settings: Mapping[str, Any]) -> list[str]:
    """Return values by dotted key as options of the command line."""
    return [f"--{key}={argument(value)}" for key, value in settings.items()]


def config_file(where: str, name: Any, folder: Path) -> str:
    """Return the path of a configuration file, or ``cera://NAME``.

    Raises:
        StudyError: There is no such file.
    """
    if not isinstance(name, str):
        raise StudyError(f"{where} must name a file, got {name!r}.")
    path = path_of_config(name, folder)
    if not path.is_file():
        raise StudyError(f"{where}: there is no file {path}; names are relative to the study's file, or cera://NAME.")
    return name if name.startswith("cera://") else str(path)


def path_of_config(name: str, folder: Path) -> Path:
    """Return the path of a configuration file, which may be ``cera://NAME`` or relative to ``folder``."""
    if name.startswith("cera://"):
        return Path(cera.__file__).parent / "configs" / f"{name.removeprefix('cera://').removesuffix('.yaml')}.yaml"
    return Path(os.path.normpath(folder / os.path.expanduser(name)))
