"""Trains several runs in one process, over one copy of their base.

    cera train-together --- --config cera://smol_cera --name=low --- --config cera://smol_cera --name=high \\
        --model.learning_rate=1e-3

After each --- are the arguments of one `cera train`. Runs whose base and adapter agree in all but learning rate, seed,
scale and dropout make their forward and backward passes together. In all else each is as in a process of its own. A run
that cannot be stacked says so, and is trained in its turn. `cera study run --together N` writes such commands.
"""

import signal
import sys
from itertools import groupby
from pathlib import Path

from cera.cli import train
from cera.cli.command_parser import CommandParser
from cera.cli.errors import UsageError
from cera.cli.paths import user_path
from cera.cli.run_command import run_command
from cera.runs.lanes import Lane
from cera.runs.signals import Stopped, pass_on, stop_signals
from cera.training.together import Companion, Together

SEPARATOR = "---"
"""Stands before the arguments of each run."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status: that of a run, the largest of all."""
    groups = [list(group) for is_separator, group in groupby(arguments, SEPARATOR.__eq__) if not is_separator]
    options = groups.pop(0) if groups and arguments[0] != SEPARATOR else []
    parser = CommandParser("train-together", __doc__)
    parser.add_argument("--logs", type=user_path, help="directory of a log of each run (default: all is printed)")
    parser.add_argument(
        "--positions", type=int, help="most positions of a pass (default: by device); the runs beyond take turns"
    )
    parsed = parser.parse_args(options)
    return run_command(lambda: _run(groups, parsed.logs, parsed.positions))


def _run(runs: list[list[str]], logs: Path | None, positions: int | None) -> int:
    if not runs:
        raise UsageError(f"give the arguments of each run after a {SEPARATOR}.")
    if positions is not None and positions < 1:
        raise UsageError(f"--positions must be at least 1, got {positions}.")
    names = [_name(arguments) for arguments in runs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"each run needs a --name of its own, and two are called {name!r}.")
    together = Together(positions)

    def open_lane(name: str, arguments: list[str]) -> Lane:
        log = None if logs is None else logs / f"{name}.log"
        return Lane(name, lambda lane: train.run(arguments, Companion(lane, together)), log)

    def receive(number: signal.Signals) -> None:
        received.append(number)
        pass_on(number)

    received: list[signal.Signals] = []
    lanes = [open_lane(*run) for run in zip(names, runs, strict=True)]
    try:
        with stop_signals(receive):
            together.run(lanes)
    finally:
        pass_on(None)
    for ended in lanes:
        apart = f", trained apart: {together.apart[ended.name]}" if ended.name in together.apart else ""
        print(f"{ended.name} ended with status {ended.status}{apart}", file=sys.stderr)
    for number, passes in sorted(together.passes.items()):
        print(f"passes of {number} runs: {passes}", file=sys.stderr)
    print(f"seconds: {', '.join(f'{part} {time:.1f}' for part, time in together.seconds.items())}", file=sys.stderr)
    if received:
        raise Stopped(received[0], "the runs have saved their state.")
    return max(ended.status or 0 for ended in lanes)


def _name(arguments: list[str]) -> str:
    """Return the ``--name`` of a run."""
    for argument, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == "--name":
            return value
        if argument.startswith("--name="):
            return argument.removeprefix("--name=")
    raise UsageError(f"each run needs a --name, got {' '.join(arguments)}.")
