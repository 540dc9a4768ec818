"""Train adapters on the same data, seed and budget, one after the other, and put their figures into one table.

    python -m cera.studies.compare configs/parts/smol.yaml configs/adapters/*.yaml -- --trainer.max_steps=100

The first file is all but the adapter; each further one is an adapter and names a run. What stands behind ``--`` goes to
every run. Runs are kept in ``--runs``: one that is there and ended is not trained again, one that was stopped goes on.
Each run is a process of its own, so its peak memory is its own.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cera.runs.finished import Run, RunError
from cera.spectral import effective_rank, energy_rank

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """What is compared of a run; ``None`` where it was not measured.

    Attributes:
        name: The run's.
        adapter: As the paper calls it, with its rank.
        parameters: Trainable.
        perplexity: On the held-out rows, after the last step.
        effective_rank: Of the update, the mean over the layers (Eq. 3).
        auc_90: Likewise.
        tokens_per_second: The median over training.
        peak_memory_gib: Of the whole process.
    """

    name: str
    adapter: str
    parameters: int | None
    perplexity: float | None
    effective_rank: float | None
    auc_90: float | None
    tokens_per_second: float | None
    peak_memory_gib: float | None


def row(run: Run) -> Row:
    """The figures of a run, from its directory."""
    environment = run.path / "environment.json"
    recorded = json.loads(environment.read_text()) if environment.is_file() else {}
    curve = run.curve("val/perplexity")
    spectra = run.spectra()
    update = list(spectra[-1].values.get("update", {}).values()) if spectra else []
    speed = list(run.curve("throughput/tokens_per_second").values())
    memory = list(run.curve("throughput/peak_memory_gib").values())
    return Row(
        name=run.name,
        adapter=run.label,
        parameters=recorded.get("trainable_parameters"),
        perplexity=curve[max(curve)] if curve else None,
        effective_rank=statistics.fmean(map(effective_rank, update)) if update else None,
        auc_90=statistics.fmean(map(energy_rank, update)) if update else None,
        tokens_per_second=statistics.median(speed) if speed else None,
        peak_memory_gib=max(memory) if memory else None,
    )


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, in the order of ``rows``."""
    columns = {
        "run": [row.name for row in rows],
        "adapter": [row.adapter for row in rows],
        "parameters": [_shown(row.parameters, ",") for row in rows],
        "PPL": [_shown(row.perplexity, ".3f") for row in rows],
        "ER": [_shown(row.effective_rank, ".1f") for row in rows],
        "AUC-90": [_shown(row.auc_90, ".1f") for row in rows],
        "tokens/s": [_shown(row.tokens_per_second, ".0f") for row in rows],
        "peak GiB": [_shown(row.peak_memory_gib, ".2f") for row in rows],
    }
    widths = {name: max(len(name), 3, *map(len, values)) for name, values in columns.items()}
    left = ("run", "adapter")
    lines = [
        [f"{name:<{width}}" if name in left else f"{name:>{width}}" for name, width in widths.items()],
        ["-" * width if name in left else "-" * (width - 1) + ":" for name, width in widths.items()],
        *(
            [f"{columns[n][i]:<{w}}" if n in left else f"{columns[n][i]:>{w}}" for n, w in widths.items()]
            for i in range(len(rows))
        ),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status: 2 after a user's mistake, 1 if a run failed."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    ours, overrides = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m cera.studies.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("common", type=Path, help="configuration without an adapter")
    parser.add_argument("adapters", type=Path, nargs="+", help="configuration files of one adapter each")
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="where the runs are kept")
    options = parser.parse_args(ours)
    for file in (options.common, *options.adapters):
        if not file.is_file():
            print(f"error: there is no configuration file {file}.", file=sys.stderr)
            return 2
    names = [file.stem for file in options.adapters]
    if len(set(names)) < len(names):
        print(f"error: two of the adapters' files have the same name: {', '.join(sorted(names))}.", file=sys.stderr)
        return 2
    failed = [
        name
        for name, file in zip(names, options.adapters, strict=True)
        if not _train(options.runs, name, [options.common, file], overrides)
    ]
    rows = [row(Run.read(options.runs / name)) for name in names if name not in failed]
    if rows:
        print(f"\n{table(rows)}\n")
        with (options.runs / "compare.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(map(asdict, rows))
    if failed:
        print(f"error: these runs failed, and say why above: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


def _train(runs: Path, name: str, configs: list[Path], overrides: list[str]) -> bool:
    """Whether the run has ended well."""
    try:
        if Run.read(runs / name).finished:
            return True
        resume = ["--ckpt_path=last"]
    except RunError:
        resume = []
    files = [f"--config={file.resolve()}" for file in configs]
    options = [f"--runs={runs.resolve()}", f"--name={name}", "--answer_tokens=0", *overrides, *resume]
    print(f"\n=== {name} ===", flush=True)
    return subprocess.run([sys.executable, "train.py", *files, *options], cwd=REPOSITORY, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
