"""Composition of configuration files.

A YAML file may begin with ``include: [other.yaml, cera://NAME, ...]``, where paths are relative to the file. The
included files are merged in order, and the file's own keys on top of them: mappings key by key, anything else is
replaced. A mapping whose ``class_path`` changes is replaced as a whole, since its ``init_args`` belonged to another
class.

Example:
    >>> compose("cera://smol_cera")["model"]["adapter"]["class_path"]
    'cera.CeraConfig'
"""

from pathlib import Path
from typing import Any

import yaml

from cera.cli.shipped import NAME, configuration_file
from cera.runs.moved import current_class_paths


def compose(path: str | Path) -> dict[str, Any]:
    """Read a configuration file together with the files that it includes.

    Args:
        path: The file, or ``cera://NAME``.

    Raises:
        ValueError: A file is missing, is not a mapping, or includes itself; the message gives the chain of files.
    """
    return _compose(configuration_file(path), ())


def _compose(path: Path, including: tuple[Path, ...]) -> dict[str, Any]:
    chain = " -> ".join(str(p) for p in (*including, path))
    if path.resolve() in {p.resolve() for p in including}:
        raise ValueError(f"configuration includes itself: {chain}")
    if not path.is_file():
        raise ValueError(f"no such configuration: {chain}")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"configuration is not YAML: {chain}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"configuration is not a mapping of keys to values: {chain}")
    merged: dict[str, Any] = {}
    included = content.pop("include", None) or []
    if isinstance(included, str):
        included = [included]
    for name in included:
        file = configuration_file(name) if NAME.fullmatch(name) else path.parent / name
        merged = merge(merged, _compose(file, (*including, path)))
    return merge(merged, current_class_paths(content))


def merge(base: Any, over: Any) -> Any:
    """Return ``base`` with ``over`` merged on top; neither is changed."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if "class_path" in over and over["class_path"] != base.get("class_path"):
        return over
    return {**base, **{key: merge(base[key], value) if key in base else value for key, value in over.items()}}
