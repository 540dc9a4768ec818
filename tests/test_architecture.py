"""Imports between the rooms of the package point one way; see the table in CONTRIBUTING.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cera"
ROOMS = (
    "adapters", "spectral", "models", "runs", "data", "training", "pretraining", "linearize", "memory", "evaluation",
    "interventions", "studies", "callbacks", "cli",
)  # fmt: skip
"""Low to high: a room imports only from itself and from rooms before it."""
ALLOWED: dict[tuple[str, str], str] = {}
"""(importing module, imported name) -> the reason for an import that points up, or that names a command."""
OUTSIDE = {"adapters": {"lightning", "datasets", "jsonargparse"}, "spectral": {"lightning", "datasets", "jsonargparse"}}
"""Libraries that a room does without."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    """The name and syntax tree of each module of the package; ``callbacks`` is linked into it."""
    for room in ROOMS:
        for path in sorted((PACKAGE / room).rglob("*.py")):
            parts = ["cera", *path.relative_to(PACKAGE).with_suffix("").parts]
            yield ".".join(parts), ast.parse(path.read_text())


def imports(name: str, tree: ast.Module) -> Iterator[str]:
    """What a module imports anywhere in it: within functions and for type checking, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: -node.level] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_command(name: str) -> bool:
    """Whether the module, or the module of the member, is a command: it may import anything."""
    parts = name.split(".")
    return parts[1] != "cli" and any(part == "__main__" or part.endswith("command") for part in parts[2:])


def room(name: str) -> str | None:
    """The room of a module's or a member's dotted name; ``None`` outside of the package."""
    parts = ["cera", *name.split(".")] if name.startswith("callbacks") else name.split(".")
    return parts[1] if parts[0] == "cera" and len(parts) > 1 and parts[1] in ROOMS else None


IMPORTS = sorted({(name, imported) for name, tree in modules() for imported in imports(name, tree)})


def test_every_package_is_a_room() -> None:
    """A new folder has a place in the order."""
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


def test_rooms_import_only_from_rooms_below_them() -> None:
    up = {
        (importer, imported)
        for importer, imported in IMPORTS
        if (target := room(imported)) is not None
        and not is_command(importer)
        and ROOMS.index(target) > ROOMS.index(str(room(importer)))
    }
    assert sorted(up - ALLOWED.keys()) == []


def test_commands_are_imported_by_name_alone() -> None:
    """Each subcommand of ``cera`` imports only what it needs, so no module imports a command."""
    by_code = {(importer, imported) for importer, imported in IMPORTS if room(imported) and is_command(imported)}
    assert sorted(by_code - ALLOWED.keys()) == []


def test_allowed_imports_are_still_made() -> None:
    """The list of exceptions shrinks with the code."""
    assert sorted(ALLOWED.keys() - set(IMPORTS)) == []


@pytest.mark.parametrize(("name", "libraries"), OUTSIDE.items())
def test_a_room_does_without_a_library(name: str, libraries: set[str]) -> None:
    used = {
        (importer, imported)
        for importer, imported in IMPORTS
        if room(importer) == name and not is_command(importer) and imported.split(".")[0] in libraries
    }
    assert used == set()
