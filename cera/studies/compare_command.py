"""Trains adapters on the same data, seed and budget, one after the other, and prints one table of their figures.

    cera compare-adapters configs/parts/smol.yaml configs/adapters/*.yaml -- --trainer.max_steps=100

The first file is everything but the adapter; each further file is an adapter and names a run. Options after -- are
passed to every run. Runs are written to --runs: a run that has finished is not trained again, an interrupted one is
resumed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cera.cli.command_parser import CommandParser
from cera.cli.compose import compose
from cera.cli.paths import expand_home, user_path
from cera.cli.run_command import run_command
from cera.cli.tables import table
from cera.runs.finished import FinishedRun
from cera.runs.names import check_name
from cera.spectral.measures import MEASURES
from cera.spectral.sample import differing_samples
from cera.studies.compare import ComparisonRow, comparison_rows, run_name, train_adapters, write_csv


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status: 2 after a user's mistake, 1 if a run failed."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    overrides = arguments[end + 1 :]
    parser = CommandParser("compare-adapters", __doc__)
    parser.add_argument("common", type=expand_home, help="configuration without an adapter")
    parser.add_argument("adapters", nargs="+", type=expand_home, help="configurations of one adapter each")
    parser.add_argument("--runs", type=user_path, default=Path("runs/compare"), help="directory of the runs")
    options = parser.parse_args(arguments[:end])
    return run_command(
        lambda: _run(options, overrides), on_interrupt="stopped; the same command resumes where it stopped."
    )


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    for config in (options.common, *options.adapters):
        compose(config)  # fails before any training if a file is missing or invalid
    names = [run_name(config) for config in options.adapters]
    for config, name in zip(options.adapters, names, strict=True):
        check_name(name, f"the name of {config}, which names a run,")
    if len(set(names)) < len(names):
        raise ValueError(f"two of the adapters' files have the same name: {', '.join(sorted(names))}.")
    failed = train_adapters(options.common, options.adapters, options.runs, overrides)
    rows = comparison_rows([FinishedRun.read(options.runs / name) for name in names if name not in failed])
    if rows:
        print(f"\n{comparison_table(rows)}\n")
        differing = differing_samples({row.name: row.sample for row in rows if row.sample is not None})
        if differing:
            print(f"warning: {differing}", file=sys.stderr)
        write_csv(rows, options.runs / "compare.csv")
    if failed:
        print(f"error: these runs failed, see their messages above: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


def comparison_table(rows: Sequence[ComparisonRow]) -> str:
    """Format the rows as a Markdown table; the measures are of the update, as it is and centred, mean over layers."""
    detailed = [measure for measure in MEASURES.values() if measure.detailed]
    cells = [
        [
            row.name,
            row.adapter,
            row.parameters,
            row.perplexity,
            *(row.measures.get(measure.name) for measure in detailed),
            *(row.centred.get(measure.name) for measure in detailed),
            row.tokens_per_second,
            row.peak_memory_gib,
        ]
        for row in rows
    ]
    headers = ["run", "adapter", "parameters", "PPL"]
    headers += [f"{measure.heading}{suffix}" for suffix in ("", ", centred") for measure in detailed]
    formats = ["g", "g", "g", ".3f", *2 * [measure.format for measure in detailed]]
    headers += ["tokens/s", "peak GiB"]
    formats += [".0f", ".2f"]
    return table(cells, headers, formats, style="markdown", intfmt=",")
