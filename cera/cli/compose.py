"""Configuration files that are put together from others.

A YAML file may begin with ``include: [other.yaml, ...]``, paths relative to itself. The included files are merged in
order and the file's own keys on top: mappings key by key, anything else replaced. A mapping whose ``class_path``
changes is replaced as a whole, since its ``init_args`` belonged to another class.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from cera.cli.moved import current_argument, current_class_paths


class Composing:
    """Mixin for a jsonargparse parser: ``--config`` reads files that include others, and earlier class paths work."""

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """Parse arguments, in which earlier class paths may stand."""
        arguments = [current_argument(argument) for argument in (sys.argv[1:] if args is None else args)]
        return super().parse_args(arguments, *rest, **kwargs)  # type: ignore[misc]

    def parse_path(self, path: Any, **kwargs: Any) -> Any:
        """Parse a file together with the files that it includes."""
        return self.parse_string(content=yaml.safe_dump(compose(str(path))), path=str(path), **kwargs)  # type: ignore[attr-defined]


def compose(path: str | Path) -> dict[str, Any]:
    """Read ``path`` with everything it includes.

    Raises:
        ValueError: A file is missing, is no mapping, or includes itself; the message gives the chain of files.
    """
    return _compose(Path(path), ())


def _compose(path: Path, including: tuple[Path, ...]) -> dict[str, Any]:
    chain = " -> ".join(str(p) for p in (*including, path))
    if path.resolve() in {p.resolve() for p in including}:
        raise ValueError(f"configuration includes itself: {chain}")
    if not path.is_file():
        raise ValueError(f"no such configuration: {chain}")
    try:
        own = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"configuration is not YAML: {chain}: {error}") from error
    if not isinstance(own, dict):
        raise ValueError(f"configuration is not a mapping of keys to values: {chain}")
    merged: dict[str, Any] = {}
    included = own.pop("include", None) or []
    for name in [included] if isinstance(included, str) else included:
        merged = merge(merged, _compose(path.parent / name, (*including, path)))
    return merge(merged, current_class_paths(own))


def merge(base: Any, over: Any) -> Any:
    """``over`` on top of ``base``."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if "class_path" in over and over["class_path"] != base.get("class_path"):
        return over
    return {**base, **{key: merge(base[key], value) if key in base else value for key, value in over.items()}}
