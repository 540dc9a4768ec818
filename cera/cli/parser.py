"""The parser of every command that reads a configuration: ``cera train``, ``cera evaluate`` and ``cera estimate``.

Beyond jsonargparse's, it reads files that include others (``cera.cli.compose``), ``cera://NAME`` for a configuration of
the package, and class paths of earlier versions. ``${...}`` is resolved after the command line's overrides.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from peft import PeftConfig

from cera.cli.compose import compose_scalars
from cera.cli.errors import UsageError
from cera.cli.paths import with_home
from cera.cli.shipped import argument_with_file
from cera.cli.suggest import explained
from cera.cli.yaml_scalars import Dumper, argument_values
from cera.data import ChatDataset, PlainText
from cera.runs.moved import current_argument

set_parsing_settings(
    subclasses_enabled=[PeftConfig, ChatDataset, PlainText],  # dataclasses, of which a configuration names subclasses
    omegaconf_absolute_to_relative_paths=True,  # ${model.base} is the model of this subcommand
)


def known_keys(parser: ArgumentParser) -> set[str]:
    """Return the keys of a parser and of its subcommands."""
    keys = {action.dest for action in parser._actions}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            keys |= {key for subparser in action._name_parser_map.values() for key in known_keys(subparser)}
    return keys


class ConfigurationParser(ArgumentParser):
    """Parser of options and of composed configuration files, which takes no abbreviations.

    It raises ``UsageError`` instead of exiting; the message is one line, with a suggestion for a near miss.
    """

    def __init__(self, **options: Any) -> None:
        fixed = {"parser_mode": "omegaconf+", "exit_on_error": False, "allow_abbrev": False}
        super().__init__(**{**fixed, **options})

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse arguments, of which some may name shipped configurations, classes by an earlier path, or ``~``."""
        arguments = sys.argv[1:] if args is None else args
        try:
            current = [current_argument(argument_with_file(argument)) for argument in arguments]
            return with_home(super().parse_args(current, *rest, **kwargs))
        except UsageError:
            raise
        except (ArgumentError, ValueError) as error:
            raise UsageError(explained(str(error), known_keys(self))) from error

    def parse_path(self, path: Any, **kwargs: Any) -> Namespace:
        """Parse a file together with the files that it includes."""
        content = yaml.dump(argument_values(compose_scalars(str(path))), Dumper=Dumper, sort_keys=False)
        return self.parse_string(content=content, path=str(path), **kwargs)

    def add_config_option(self, help: str) -> None:
        """Add ``--config``, which may be given several times."""
        self.add_argument("--config", action=ActionConfigFile, help=help)
