"""The parser of the commands that read no configuration: no abbreviations, and one line for a mistake."""

import argparse
import re
from typing import NoReturn

from cera.cli.similar import closest, did_you_mean


class CommandParser(argparse.ArgumentParser):
    """Parses the arguments of a command; a mistake is one line with a suggestion, and exit status 2.

    Args:
        command: Name of the command, as in ``cera COMMAND``.
        description: What the command does, with examples, as it is written.
    """

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(
            prog=f"cera {command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add_overwrite(self) -> None:
        """Add ``--overwrite``, which ``cera.cli.outputs.check_outputs`` reads."""
        self.add_argument("--overwrite", action="store_true", help="replace files that exist")

    def error(self, message: str) -> NoReturn:
        """Print the message with what was meant, and exit."""
        unknown = re.search(r"unrecognized arguments: (-\S+)", message)
        near = closest(unknown[1].partition("=")[0], self._option_string_actions) if unknown else []
        hint = did_you_mean(near, f"`{self.prog} --help` explains the command.")
        self.exit(2, f"error: {message}. {hint}\n")
