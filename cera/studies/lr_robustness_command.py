"""Reports how much adapters depend on their learning rate (paper Section 4.4, Fig. 2), over the runs of a study.

    cera lr-robustness runs              # all studies in a directory of runs
    cera lr-robustness runs/smol_cera    # the study that a run belongs to

Prints a table and writes a figure for each study. The runs of a study share data, model and recipe and differ in
adapter, learning rate and seed.
"""

import argparse
from collections.abc import Iterable
from functools import partial

from cera.cli.command_parser import CommandParser
from cera.cli.outputs import check_output, check_outputs
from cera.cli.paths import user_path
from cera.cli.run_command import run_command
from cera.cli.tables import table
from cera.progress import StatusBar
from cera.runs.finished import FinishedRun
from cera.studies.lr_robustness import (
    Robustness,
    find_studies,
    format_learning_rate,
    grid_notes,
    robustness_by_adapter,
)
from cera.studies.lr_robustness_figure import MAX_PANELS, figure, save_figure


def main(arguments: list[str]) -> int:
    """Print the table of each study and save its figure; return the exit status, 2 after a user's mistake."""
    parser = CommandParser("lr-robustness", __doc__)
    parser.add_argument(
        "path", type=user_path, help="a directory of runs, or one run, whose study is read from its siblings"
    )
    parser.add_argument(
        "--out",
        type=user_path,
        help="figure: .png, .pdf or .svg (default: PATH/lr_robustness.png, which is drawn anew)",
    )
    parser.add_overwrite()
    options = parser.parse_args(arguments)
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    check_outputs(options, "out")
    path, out = options.path, options.out or options.path / "lr_robustness.png"
    studies = find_studies(path, partial(StatusBar, what="reading runs", unit="run", leave=False))
    for index, runs in enumerate(studies, start=1):
        results = robustness_by_adapter(runs).values()
        target = out if index == 1 else out.with_stem(f"{out.stem}-{index}")
        if options.out is not None:
            check_output(target, "out", options.overwrite)
        save_figure(figure(results), target)
        notes = "".join(f"note: {note}\n" for note in grid_notes(results))
        print(f"{_heading(runs)}\n\n{robustness_table(results)}\n\n{notes}figure: {target}\n")


def robustness_table(results: Iterable[Robustness]) -> str:
    """Format a row per adapter: final perplexity by learning rate, unless there are many, and the summary figures."""
    results = list(results)
    all_rates = sorted({lr for r in results for lr in r.curves})
    shown = all_rates if len(all_rates) <= MAX_PANELS else []
    summary = ["rates", "best", "at", "spread", "area over log rate", "area over steps", "within 1%", "diverged"]
    headers = ["adapter", *map(format_learning_rate, shown), *summary]
    rows = []
    for result in results:
        best = None if result.best is None else result.final_perplexity[result.best]
        rows.append(
            [
                result.label,
                *(_final(result, lr) for lr in shown),
                str(len(result.curves)),
                _number(best),
                "-" if result.best is None else format_learning_rate(result.best),
                _number(result.spread),
                _number(result.area_over_rates),
                _number(result.area_between_curves),
                _number(result.share_within, ".0%"),
                str(result.divergences),
            ]
        )
    return table(rows, headers, verbatim=range(1, len(headers)))


def _number(value: float | None, format_: str = ".3f") -> str:
    return "-" if value is None else format(value, format_)


def _final(result: Robustness, learning_rate: float) -> str:
    if learning_rate in result.final_perplexity:
        return f"{result.final_perplexity[learning_rate]:.3f}"
    if learning_rate in result.diverged:
        return "diverged"
    return "not ended" if learning_rate in result.curves else "-"


def _heading(runs: list[FinishedRun]) -> str:
    model, data = runs[0].config["model"].get("base"), (runs[0].config.get("data") or {}).get("dataset") or {}
    names = [run.name for run in runs[:5]]
    if len(runs) > 5:
        names.append("...")
    return f"{model} on {data.get('class_path')}; {', '.join(names)} (runs: {len(runs)})"
