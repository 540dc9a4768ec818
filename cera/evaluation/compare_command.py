"""The command ``cera compare``."""

import argparse

from cera.cli.command_parser import CommandParser
from cera.cli.paths import user_path
from cera.cli.run_command import run_command
from cera.cli.tables import table
from cera.evaluation.compare import EvaluationComparison, compare, differing_settings, find_results, read_results
from cera.evaluation.fields import RecordError

DESCRIPTION = """Compare two evaluations of the same problems: is the difference more than chance?

    cera compare runs/smol_lora runs/smol_cera

Each is a run directory with results in eval/NAME, or such a folder itself; if a run has several, --name chooses one.
The intervals are of the difference B - A. p is that of the paired randomization test, which is exact: where scores are
0 or 1 it is McNemar's test of the problems that only one of the two solves.
"""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    parser = CommandParser("compare", DESCRIPTION)
    parser.add_argument("a", type=user_path, help="first run or folder of results")
    parser.add_argument("b", type=user_path, help="second run or folder of results")
    parser.add_argument("--name", help="name of the evaluation")
    options = parser.parse_args(arguments)
    return run_command(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> None:
    folders = [find_results(folder, options.name) for folder in (options.a, options.b)]
    (report_a, records_a), (report_b, records_b) = map(read_results, folders)
    metrics = [name for name in report_a["metrics"] if name in report_b["metrics"]]
    if not metrics:
        names = [", ".join(report["metrics"]) for report in (report_a, report_b)]
        raise RecordError(
            f"the two have no metric in common: {folders[0]} has {names[0]}, {folders[1]} has {names[1]}."
        )
    comparison = compare(records_a, records_b, metrics)
    for letter, folder in zip("AB", folders, strict=True):
        print(f"{letter} = {folder}")
    for line in differing_settings(report_a["settings"], report_b["settings"]):
        print(f"note: {line}")
    print(f"{comparison.problems} problems\n\n{_table(comparison)}")
    if comparison.mcnemar is not None:
        test = comparison.mcnemar
        print(
            f"\nonly A right: {test.only_a}, only B right: {test.only_b}; McNemar's exact test: p = {test.p_value:.4f}"
        )


def _table(comparison: EvaluationComparison) -> str:
    rows = []
    for row in comparison.metrics:
        difference = row.difference
        interval = f"({difference.interval.low:+.2%}, {difference.interval.high:+.2%})"
        values = [f"{row.a:.2%}", f"{row.b:.2%}", f"{difference.difference:+.2%}", interval]
        rows.append([row.metric, *values, f"{difference.p_value:.4f}"])
    return table(rows, ["", "A", "B", "B - A", "95% interval", "p"])
