"""Composition of configuration files.

A YAML file may begin with ``include: [other.yaml, cera://NAME, ...]``, where paths are relative to the file. The
included files are merged in order, and the file's own keys on top of them: mappings key by key, anything else is
replaced. A mapping whose ``class_path`` changes is replaced as a whole, since its ``init_args`` belonged to another
class. ``KEY+`` appends to the list ``KEY`` of the included files, as it does on the command line.

Example:
    >>> compose("cera://smol_cera")["model"]["adapter"]["class_path"]
    'cera.CeraConfig'
"""

import os
from pathlib import Path
from typing import Any

import yaml

from cera.cli.paths import expand_home
from cera.cli.shipped import NAME, configuration_file, similar_files
from cera.cli.yaml_scalars import Loader, typed_values
from cera.foreign_yaml import MOST_NODES, load_yaml
from cera.runs.moved import current_class_paths

MOST_FILES = 100
"""Maximum number of files of one configuration."""


def compose(path: str | Path) -> dict[str, Any]:
    """Read a configuration file together with the files that it includes.

    Args:
        path: The file, or ``cera://NAME``.

    Raises:
        ValueError: A file is missing, is not a mapping, or includes itself; the message gives the chain of files.
    """
    return typed_values(compose_scalars(path))


def compose_scalars(path: str | Path) -> dict[str, Any]:
    """Read a configuration file as ``compose`` does, but keep the text of numbers; see ``cera.cli.yaml_scalars``."""
    return _compose(configuration_file(path), (), {})


def _compose(path: Path, including: tuple[Path, ...], composed: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """Compose one file.

    Args:
        path: The file.
        including: The files that include it, the outermost first.
        composed: The results for files that were composed before, to which this one is added.
    """
    file = path.resolve()
    if file in composed:
        return composed[file]
    chain = " -> ".join(str(p) for p in (*including, path))
    if file in {p.resolve() for p in including}:
        raise ValueError(f"configuration includes itself: {chain}")
    if not os.path.isfile(path):  # unlike Path.is_file, it takes a name that is too long
        raise ValueError(f"no such configuration: {chain}. {similar_files(path)}".rstrip())
    if len(including) >= MOST_FILES or len(composed) >= MOST_FILES:
        raise ValueError(
            f"configuration includes more than {MOST_FILES} files: {including[0]} and others, up to {path}"
        )
    try:
        content = load_yaml(path.read_text(), Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"configuration is not YAML: {chain}: {' '.join(str(error).split())}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"configuration cannot be read: {chain}: {error}") from error
    if typed_values(content) is None:
        content = {}
    if not isinstance(content, dict):
        raise ValueError(f"configuration is not a mapping of keys to values: {chain}")
    merged: dict[str, Any] = {}
    included = typed_values(content.pop("include", None)) or []
    if isinstance(included, str):
        included = [included]
    if not isinstance(included, list) or not all(isinstance(name, str) for name in included):
        raise ValueError(f"include must name files, got {repr(included)[:200]}: {chain}")
    for name in included:
        other = configuration_file(name) if NAME.fullmatch(name) else path.parent / expand_home(name)
        merged = merge(merged, _compose(other, (*including, path), composed))
    composed[file] = merge(merged, current_class_paths(content))
    return composed[file]


def merge(base: Any, over: Any) -> Any:
    """Return ``base`` with ``over`` merged on top; neither is changed."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if "class_path" in over and over["class_path"] != base.get("class_path"):
        return over
    merged = dict(base)
    # a key that replaces a list comes before one that appends to it, whatever their order in the file
    for key, value in sorted(over.items(), key=lambda item: str(item[0]).endswith("+")):
        if str(key).endswith("+"):
            _append(merged, key.removesuffix("+"), value)
        else:
            merged.pop(f"{key}+", None)
            merged[key] = merge(base[key], value) if key in base else value
    return merged


def _append(merged: dict[str, Any], key: str, value: Any) -> None:
    """Append ``value``, one item or several, to the list ``key``; without one, keep ``key+`` for a later merge."""
    target = key if key in merged else f"{key}+"
    items, more = _items(merged.get(target)), _items(value)
    if len(items) + len(more) > MOST_NODES:
        raise ValueError(f"the included files append more than {MOST_NODES} items to {key}")
    merged[target] = [*items, *more]


def _items(value: Any) -> list[Any]:
    if typed_values(value) is None:
        return []
    return value if isinstance(value, list) else [value]
