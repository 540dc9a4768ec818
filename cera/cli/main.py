"""The console script ``cera``: one command for training, evaluation and everything that reads a finished run.

    cera train --config cera://smol_cera
    cera spectra runs/smol_cera runs/smol_lora
    cera evaluate --help

A subcommand's module is imported when it is called, so that a command needs no more than it uses.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from cera import __version__
from cera.cli.similar import closest, did_you_mean
from cera.extras import extra_of, missing
from cera.runs.signals import exit_at_interrupt


class Command(NamedTuple):
    """A subcommand: a module with ``main(arguments: list[str]) -> int``, the extra it needs, and one line of help."""

    module: str
    extra: str
    help: str


COMMANDS = {
    "train": Command("cera.cli.train", "train", "train, validate, test or predict from a configuration file"),
    "pretrain": Command("cera.pretraining.command", "train", "pre-train a small base model, for studies on a CPU"),
    "evaluate": Command("cera.evaluation.command", "eval", "answer the problems of a task and score the answers"),
    "compare": Command("cera.evaluation.compare_command", "eval", "compare two evaluations, with paired tests"),
    "overlap": Command("cera.evaluation.overlap_command", "eval", "find evaluation problems in a training set"),
    "lm-eval": Command("cera.evaluation.lm_eval_command", "lm-eval", "run lm-evaluation-harness on an adapter"),
    "spectra": Command("cera.spectral.command", "train", "effective rank and AUC-90 of finished adapters"),
    "import": Command("cera.runs.import_command", "train", "turn a checkpoint of the authors' code into an adapter"),
    "linearize": Command("cera.linearize.command", "train", "fit a LoRA to a finished CeRA adapter"),
    "intervene": Command(
        "cera.interventions.command", "eval", "replace an adapter's activation by its linear part or the rest"
    ),
    "serve": Command("cera.cli.serve", "train", "serve a base model with CeRA and LoRA adapters, in vLLM"),
    "estimate": Command("cera.memory.command", "train", "estimate the memory that training takes"),
    "lr-robustness": Command(
        "cera.studies.lr_robustness_command", "train", "perplexity over learning rates, by adapter"
    ),
    "train-together": Command("cera.cli.train_together", "train", "train several runs over one copy of their base"),
    "study": Command("cera.studies.study_command", "train", "plan, run and report a study of many training runs"),
    "compare-adapters": Command(
        "cera.studies.compare_command", "train", "train several adapters alike, and tabulate them"
    ),
}

EPILOG = """\
`cera COMMAND --help` explains a command. Configurations that come with the package are named cera://NAME, such as
cera://smol_cera, which trains a small Llama on a CPU. `--import MODULE` first imports a module of your own, such as one
that registers an adapter."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status.

    The status is 2 after a user's mistake or if an extra is missing, and 130 after Ctrl-C.
    """
    try:
        return _run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:  # which the subcommand did not handle
        print("\nSIGINT: stopped.", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        if arguments and not arguments[0].startswith("-"):
            hint = did_you_mean(closest(arguments[0], COMMANDS), f"There are {', '.join(COMMANDS)}.")
            print(f"error: there is no command {arguments[0]!r}. {hint}", file=sys.stderr)
            return 2
        _parser().parse_args(arguments or ["--help"])  # which exits
        return 2
    name, *rest = arguments
    command = COMMANDS[name]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # class paths may name modules of the user's own
    try:
        rest = _import_modules(rest)
    except ImportError as error:
        print(f"error: --import: {error}", file=sys.stderr)
        return 2
    try:
        with exit_at_interrupt():
            module = importlib.import_module(command.module)
        return module.main(rest)
    except ModuleNotFoundError as error:
        extra = extra_of(error.name and error.name.partition(".")[0], command.extra)
        if extra is None:
            raise
        print(f"error: {missing(f'`cera {name}`', str(error.name).partition('.')[0], extra)}", file=sys.stderr)
        return 2


def _import_modules(arguments: list[str]) -> list[str]:
    """Import the modules that ``--import MODULE`` names, and return the other arguments.

    A module can register an adapter, an activation or a measure of the user's own before a command needs it.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--import", dest="modules", action="append", default=[])
    options, others = parser.parse_known_args(arguments)
    for module in options.modules:
        importlib.import_module(module)
    return others


def _parser() -> argparse.ArgumentParser:
    """Return the parser of what comes before a subcommand: ``--help``, ``--version``, and unknown names."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="cera",
        usage="cera COMMAND ...",
        description=f"Train, inspect and compare CeRA and other adapters.\n\ncommands:\n{commands}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cera {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
