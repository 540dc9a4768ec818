"""The help of ``cera train``: what the project adds comes first, Lightning's ``Trainer`` behind ``--help-all``."""

import argparse
import re
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

DESCRIPTIONS = {
    "fit": (
        "Train an adapter. Other subcommands take a trained run: `validate` and `test` measure its perplexity, `test` "
        "also evaluates a task, `predict` answers the held-out prompts."
    ),
    "validate": "Measure the perplexity of a trained run on its held-out rows, and its spectra.",
    "test": "Measure the perplexity of a trained run on its held-out rows; with an `evaluation`, evaluate the task.",
    "predict": "Answer the held-out prompts with a trained run.",
}
RESUMED = "`last` resumes the newest run of this name that has a checkpoint; or the path of a checkpoint."
MEASURED = "Path of the checkpoint (default: the newest one of the run of this name)."
EPILOG = """\
Options of the trainer are --trainer.KEY: --help-all shows them, and docs/training.md which values are supported.
Configurations are files or cera://NAME; --print_config shows all settings of one. --trainer.callbacks.help CLASS, and
the same for an adapter or a dataset, shows the arguments of a class."""


TYPE = re.compile(r"(?<=\()type: (.*), (?=default: )", re.DOTALL)
FIRST_SENTENCE = re.compile(r"(?<=\.)\s+(?=[A-Z`])")


class ShortHelp(DefaultHelpFormatter):
    """Formats an option's first sentence, type and default.

    It leaves out lists of classes, options about options, and ``--reuse``, which is for studies.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "max_help_position": 36})

    def _get_help_string(self, action: argparse.Action) -> str:
        text, known, _ = super()._get_help_string(action).partition(", known subclasses: ")
        if not action.help or not text.startswith(action.help):
            return text
        details = text.removeprefix(action.help) + (")" if known else "")
        values = self._format_args(action, "VALUE")
        details = TYPE.sub("" if values.startswith("{") else r"\1, ", details)  # {a,b} says the type
        return FIRST_SENTENCE.split(action.help, maxsplit=1)[0] + details

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return "VALUE"

    def _format_action(self, action: argparse.Action) -> str:
        if action.dest in ("model", "data", "trainer", "reuse") or action.dest.endswith(".help"):
            return ""
        return super()._format_action(action)


class HelpAll(argparse.Action):
    """Prints the help with Lightning's options, and exits."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None, **_: Any) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: Any, *_: Any) -> None:
        print(parser.format_help(everything=True))
        parser.exit()


def describe(parser: ArgumentParser, subcommand: str) -> None:
    """Give the parser of a subcommand its usage, description and headings."""
    parser.usage = f"cera train {'[fit]' if subcommand == 'fit' else subcommand} --config FILE [--KEY=VALUE ...]"
    parser.description = DESCRIPTIONS[subcommand]
    parser.epilog = EPILOG
    assert parser.groups is not None
    titles = {subcommand: "checkpoint", "model": "model", "data": "data", "trainer": "Lightning's Trainer"}
    for name, title in titles.items():
        parser.groups[name].title = title
    helps = {
        "ckpt_path": RESUMED if subcommand == "fit" else MEASURED,
        "weights_only": "Refuse a checkpoint that holds more than tensors and plain values.",
        "seed_everything": "Seed of the order of rows, of dropout and of the weights at the start.",
        "config": "Configuration: a file, or cera://NAME for one of the package; may be repeated, later ones win.",
    }
    for action in parser._actions:
        if action.dest in helps:
            action.help = helps[action.dest]


def ordered_groups(parser: ArgumentParser, everything: bool) -> list[Any]:
    """Return the groups of options in the order of the help: the run, the model and the data, then Lightning's."""
    assert parser.groups is not None
    lightnings = [parser.groups["trainer"]]
    ours = [group for group in parser._action_groups if group not in lightnings and group.title != "Linked arguments"]
    return [*ours, *lightnings] if everything else ours
