"""A hook of mkdocs: makes a page of the API reference for each room of the package, with all of its public modules."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parent.parent / "cera"
COMMANDS = ("__main__", "command", "main")
"""Modules that are left out: what they do is in ``cera NAME --help``."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add ``reference/ROOM.md`` for each package below ``cera``."""
    for room in sorted(path.parent for path in PACKAGE.glob("*/__init__.py")):
        if room.name != "cli":
            files.append(File.generated(config, f"reference/{room.name}.md", content=page(room)))
    return files


def page(room: Path) -> str:
    """Return the Markdown of a room: its own docstring, then a section for each module."""
    options = "    options:\n      members: false\n      show_root_heading: false"
    sections = [f"# cera.{room.name}", f"::: cera.{room.name}\n{options}"]
    for module in sorted(room.rglob("*.py")):
        names = module.relative_to(PACKAGE).with_suffix("").parts
        if not names[-1].startswith("_") and names[-1] not in COMMANDS and not names[-1].endswith("command"):
            sections.append(f"::: cera.{'.'.join(names)}")
    return "\n\n".join(sections) + "\n"
