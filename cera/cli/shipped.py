"""Configurations that come with the package, named ``cera://NAME``.

Example:
    >>> configuration_file("cera://smol_cera").name
    'smol_cera.yaml'
"""

import re
from pathlib import Path

from cera.cli.paths import user_path
from cera.cli.similar import closest, did_you_mean

FOLDER = Path(__file__).parent.parent / "configs"
NAME = re.compile(r"cera:/{1,2}(?P<name>.*)")  # a Path has made one slash of two


def configuration_file(path: str | Path) -> Path:
    """Return the file of a configuration: of ``cera://NAME``, or ``path`` itself.

    Args:
        path: A file, or ``cera://NAME`` for ``configs/NAME.yaml`` of the package, where NAME may name a folder.

    Raises:
        ValueError: The package has no such configuration; the message names similar ones, or all.
    """
    match = NAME.fullmatch(str(path))
    if match is None:
        return user_path(str(path))
    name = match["name"].removesuffix(".yaml")
    names = shipped_configurations()
    if name not in names:
        hint = did_you_mean(closest(name, names), f"There are {', '.join(names)}.")
        raise ValueError(f"the package has no configuration cera://{name}. {hint}")
    return FOLDER / f"{name}.yaml"


def shipped_configurations() -> list[str]:
    """Return the names of all configurations that come with the package, such as ``adapters/lora``."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def similar_files(path: Path) -> str:
    """Return a hint at a configuration of the package, or a file beside ``path``, of a similar name; or nothing."""
    shipped = shipped_configurations()
    if path.stem in shipped:
        return did_you_mean([f"cera://{path.stem}"])
    beside = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = [str(path.parent / name) for name in closest(path.name, beside)]
    return did_you_mean(near or [f"cera://{name}" for name in closest(path.stem, shipped)])


def argument_with_file(argument: str) -> str:
    """Return a command-line argument whose value ``cera://NAME`` is replaced by the file's path."""
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return f"{option}{equals}{configuration_file(value)}" if NAME.fullmatch(value) else argument
