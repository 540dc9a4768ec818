"""Plans, runs and reports a study: many training runs, each a process with a run directory of its own.

    cera study plan configs/studies/smol_lr.yaml              # the runs, with their sizes
    cera study plan configs/studies/smol_lr.yaml --shell      # what has not ended, one command a line
    cera study run configs/studies/smol_lr.yaml --parallel 2  # what has not ended; resumes what was stopped
    cera study run configs/studies/smol_lr.yaml --together 4  # runs of one adapter over one copy of the base
    cera study run configs/studies/smol_lr.yaml --parallel 8 --ray auto  # the same on a cluster
    cera study run configs/studies/smol_lr.yaml --only 'lora-*'           # a part of it
    cera study run configs/studies/fig3.yaml --reuse          # runs that other studies have, such as fig1, are copied
    cera study status configs/studies/smol_lr.yaml            # how far each run is
    cera study report configs/studies/smol_lr.yaml            # tables and figures, from the run directories
    cera study report summary.json --out report               # the same from a summary alone
    cera study claims configs/claims/paper.yaml --out docs/claims.md      # a verdict for each claim, from results/

The study's file may be named cera://studies/NAME, too. Ctrl-C stops the runs, which save their state, and the same
command goes on.
"""

import argparse
import shlex
import sys
from pathlib import Path

from cera.cli.command_parser import CommandParser
from cera.cli.errors import UsageError
from cera.cli.paths import expand_home, user_path
from cera.cli.run_command import run_command
from cera.cli.shipped import configuration_file
from cera.cli.study_tables import LiveTable, plan_table, status_table
from cera.progress import progress
from cera.runs.files import replacing
from cera.studies.claims import read_claims
from cera.studies.claims_page import claims_page
from cera.studies.definition import REPLICATES
from cera.studies.processes import command_to_train
from cera.studies.report import write_report
from cera.studies.state import ENDED, NOT_WANTED, RunState, duration, expected_seconds, progress_line, seconds_left
from cera.studies.study import Study
from cera.studies.summary import SUMMARY, Summary

OPTIONS = {
    "shell": ("plan",),
    "memory": ("plan",),
    "base": ("plan",),
    "ray": ("run",),
    "no_fork": ("run",),
    "together": ("run",),
    "reuse": ("run",),
    "out": ("report", "claims"),
    "results": ("claims",),
    "benchmarks": ("claims",),
}
"""The actions that have an option, of those that only some have."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status: 2 after a user's mistake, 1 if a run failed or diverged."""
    parser = CommandParser("study", __doc__)
    parser.add_argument("action", choices=("plan", "run", "status", "report", "claims"), help="what to do")
    parser.add_argument("study", type=expand_home, help="its file, or that of claims, cera://NAME, or a summary.json")
    parser.add_argument("--runs", type=user_path, default=Path("runs"), help="directory of all runs")
    parser.add_argument("--parallel", type=int, default=1, help="number of runs at a time (default: 1)")
    parser.add_argument(
        "--together",
        type=int,
        metavar="N",
        help="run: up to N runs a process, over one copy of their base, where only rate, seed, scale or dropout differ",
    )
    parser.add_argument("--only", metavar="PATTERN", nargs="+", help="only runs with such names, as in 'lora-*-seed0'")
    parser.add_argument("--no-fork", action="store_true", help="run: start each process anew, which takes seconds more")
    parser.add_argument(
        "--reuse", action="store_true", help="run: copy runs with the same settings from other studies in --runs"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="run: on this Ray cluster; local: on a Ray of its own, here")
    parser.add_argument("--shell", action="store_true", help="plan: print a command a line of what has not ended")
    parser.add_argument("--memory", action="store_true", help="plan: estimate the memory of each method, too")
    parser.add_argument("--base", type=expand_home, help="plan: count on this model, a directory with its config.json")
    parser.add_argument(
        "--out", type=user_path, help="report: its directory (default: that of the study's runs); claims: the page"
    )
    parser.add_argument("--results", type=user_path, help="claims: directory of summaries (default: results)")
    parser.add_argument("--benchmarks", type=user_path, help="claims: their directory (default: benchmarks/results)")
    options = parser.parse_args(arguments)
    return run_command(lambda: _run(options), on_interrupt="stopped; the same command goes on.")


def _run(options: argparse.Namespace) -> int:
    for name, actions in OPTIONS.items():
        if getattr(options, name) and options.action not in actions:
            of = " and ".join(f"`cera study {action}`" for action in actions)
            raise UsageError(f"--{name.replace('_', '-')} is an option of {of}.")
    if options.parallel < 1:
        raise UsageError(f"--parallel must be at least 1, got {options.parallel}.")
    if options.together is not None and options.together < 1:
        raise UsageError(f"--together must be at least 1, got {options.together}.")
    if options.action == "report" and options.study.endswith(".json"):
        return _print_files(write_report(Summary.read(Path(options.study)), options.out or Path(options.study).parent))
    if options.action == "claims":
        return _claims(options)
    study = Study.load(configuration_file(options.study), options.runs)
    study = study.only(*options.only) if options.only else study
    study = study.reusing() if options.reuse else study
    run = {"plan": _plan, "run": _run_study, "status": _status, "report": _report}
    return run[options.action](study, options)


def _plan(study: Study, options: argparse.Namespace) -> int:
    if options.shell:
        for state in study.states():
            if state.state not in (*ENDED, *NOT_WANTED):
                _, *command = command_to_train(study.folder, state.run)
                print(shlex.join(["python", *command]))
        return 0
    # which takes seconds to import, and is not needed by the other actions
    from cera.cli.study_plan import plan_runs

    states = study.states()
    runs = [state.run for state in states if state.state not in NOT_WANTED]
    planned, missing = plan_runs(progress(runs, "planning", "run"), options.base, options.memory)
    left = seconds_left(states, options.parallel)
    time_left = "unknown, as no run has ended yet" if left is None else duration(left)
    print(f"{plan_table(planned, options.memory, expected_seconds(states))}\n")
    if missing is not None:
        print(f"parameters unknown: {missing}\nGive such a directory as --base.\n", file=sys.stderr)
    number = f"{len(runs)} runs in {study.folder}{_later_runs(study, states)}"
    print(f"{number}; time with --parallel {options.parallel}: {time_left}")
    return 0


def _later_runs(study: Study, states: list[RunState]) -> str:
    """Return how many runs come when the search of each method has ended, in words."""
    undecided = {(state.run.method, state.run.labels[REPLICATES]) for state in states if state.state == "undecided"}
    selection = study.definition.selection
    if not undecided or selection is None:
        return ""
    return f", and {len(undecided)} to come, each method's other seeds at its best {selection.axis}"


def _run_study(study: Study, options: argparse.Namespace) -> int:
    together = options.together or 1
    states = study.run(options.parallel, LiveTable(options.parallel), options.ray, not options.no_fork, together)
    print(f"\n{status_table(states)}\n\nsummary: {study.folder / SUMMARY}")
    return int(any(state.state not in ("finished", "stopped early", "not needed") for state in states))


def _status(study: Study, options: argparse.Namespace) -> int:
    states = study.states()
    print(f"{status_table(states)}\n\n{progress_line(states, options.parallel)}")
    return 0


def _report(study: Study, options: argparse.Namespace) -> int:
    return _print_files(study.report(options.out))


def _claims(options: argparse.Namespace) -> int:
    claims = read_claims(configuration_file(options.study))
    results, benchmarks = options.results or Path("results"), options.benchmarks or Path("benchmarks/results")
    page = claims_page(claims, results, benchmarks)
    if options.out is None:
        print(page, end="")
        return 0
    with replacing(options.out) as file:
        file.write_text(page, encoding="utf-8", newline="\n")
    return _print_files([options.out])


def _print_files(paths: list[Path]) -> int:
    for path in paths:
        print(path)
    return 0
