"""Estimates how much memory training takes, by method and ZeRO stage, without loading or downloading weights.

    cera estimate --config configs/cera_r128.yaml --model.base=configs/models/llama-3-8b --devices 8
    cera estimate --config configs/cera_r128.yaml --config configs/lora_r128.yaml --json memory.json

Each --config is a training run, which gets one row per ZeRO stage; any other option is passed on to all runs, as to
`cera train`. Weights, gradients and optimizer state are counted, and the temporary tensors of a step, which are tracked
through the run's own model and loss on tensors without content.

Sizes are those of torch's CPU kernels: attention counts as sdpa unless it is eager, layers as uncompiled. Not counted
are Python and its libraries, a GPU's context, workspaces within kernels, and memory that an allocator holds back.
"""

import argparse
import json
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import astuple, fields

from cera.cli.command_parser import CommandParser
from cera.cli.outputs import check_outputs
from cera.cli.paths import user_path
from cera.cli.run_command import run_command
from cera.cli.tables import table
from cera.cli.training_run import read_run
from cera.memory.estimate import MemoryRow, estimate
from cera.memory.model_states import Memory
from cera.runs.files import replacing

ASSUMPTIONS = """\
GiB per device (or process), for one micro-batch of `tokens`, {labelled:.0%} of them labelled; * marks the configured
stage. DeepSpeed's buffers are gradient buckets at stages 1 and 2, and a bucket and gathered weights at stage 3."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status: 2 after a user's mistake."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed is only imported for its options
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # a trainer reports unused GPUs
    usage = CommandParser("estimate", __doc__)
    usage.add_argument("--config", action="append", required=True, metavar="FILE", help="a run; may be repeated")
    usage.add_argument("--devices", type=int, help="number of GPUs or processes (default: as configured)")
    usage.add_argument("--labelled", type=float, default=1.0, help="share of tokens with loss (default: %(default)s)")
    usage.add_argument("--json", type=user_path, metavar="FILE", help="write the rows to FILE, in bytes")
    usage.add_overwrite()
    options, overrides = usage.parse_known_args(arguments)
    return run_command(lambda: _run(options, overrides))


def _run(options: argparse.Namespace, overrides: list[str]) -> None:
    check_outputs(options, "json")
    if options.devices is not None and options.devices < 1:
        raise ValueError(f"--devices must be at least 1, got {options.devices}.")
    if not 0 < options.labelled <= 1:
        raise ValueError(f"--labelled must be in (0, 1], got {options.labelled}.")
    runs = [read_run(file, overrides, options.devices) for file in options.config]
    rows = [row for run in runs for row in estimate(run, options.labelled)]
    print(f"{memory_table(rows)}\n\n{ASSUMPTIONS.format(labelled=options.labelled)}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        with replacing(options.json) as file:
            file.write_text(json.dumps([row.asdict() for row in rows], indent=1) + "\n")


def memory_table(rows: Sequence[MemoryRow]) -> str:
    """Format the rows as a Markdown table in GiB."""
    cells = [
        [
            row.run.name,
            row.run.adapter,
            f"{row.run.rows} x {row.run.length}",
            row.run.devices,
            f"{'none' if row.stage is None else row.stage}{' *' if row.stage == row.run.stage else ''}",
            *(size / 2**30 for size in (*astuple(row.memory), row.memory.total)),
        ]
        for row in rows
    ]
    purposes = [field.name for field in fields(Memory)]
    headers = ["configuration", "method", "tokens", "devices", "ZeRO", *purposes, "total"]
    return table(cells, headers, floatfmt=".2f", style="markdown")
