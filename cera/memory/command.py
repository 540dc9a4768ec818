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
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, Namespace
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cera.cli.command_parser import CommandParser
from cera.cli.outputs import check_outputs
from cera.cli.parser import ConfigurationParser
from cera.cli.paths import user_path
from cera.cli.preflight import on_hub
from cera.cli.run_command import run_command
from cera.cli.shipped import configuration_file, similar_files
from cera.cli.tables import table
from cera.data import ChatData
from cera.memory.activations import cpu_trainer
from cera.memory.estimate import PRECISIONS, MemoryRow, TrainingRun, estimate
from cera.memory.model_states import Memory
from cera.runs.files import replacing
from cera.runs.finished import adapter_label
from cera.training.module import CausalLM

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


# Reading a configuration


def training_parser() -> ConfigurationParser:
    """Return a parser of all keys of a training configuration; only model, data and trainer are evaluated."""
    parser = ConfigurationParser()
    parser.add_config_option("Configuration of a training run.")
    parser.add_class_arguments(CausalLM, "model")
    parser.add_class_arguments(ChatData, "data")
    parser.link_arguments("model.base", "data.tokenizer")
    ignored = ("callbacks", "logger", "plugins", "profiler")
    parser.add_class_arguments(Trainer, "trainer", skip=set(ignored))
    for key in (*(f"trainer.{name}" for name in ignored), "seed_everything", "ckpt_path", "evaluation"):
        parser.add_argument(f"--{key}", type=Any)
    for key in ("name", "runs", "checkpoint_every", "answer_tokens"):
        parser.add_argument(f"--{key}", type=Any)
    return parser


def read_run(file: str, overrides: Sequence[str] = (), devices: int | None = None) -> TrainingRun:
    """Read a training configuration.

    Args:
        file: YAML file.
        overrides: Options of ``cera train`` that override it.
        devices: Number of devices; ``None`` takes the configured number, or this machine's GPUs if none is configured.

    Raises:
        ValueError: The configuration is invalid, or sets something that cannot be estimated.
    """
    file = str(configuration_file(file))
    if not Path(file).is_file():  # jsonargparse would parse the name as a configuration
        raise ValueError(f"no such configuration: {file}. {similar_files(Path(file))}".rstrip())
    try:
        return _read_run(file, overrides, devices)
    except (ArgumentError, MisconfigurationException, TypeError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _read_run(file: str, overrides: Sequence[str], devices: int | None) -> TrainingRun:
    parser = training_parser()
    config = parser.parse_args([f"--config={file}", *overrides])
    if missing := on_hub(config.model.base, "model", "config.json"):
        raise ValueError(
            f"this machine lacks {missing[0]}. --model.base also accepts a directory with the model's config.json."
        )
    model_parser = ConfigurationParser()
    model_parser.add_class_arguments(CausalLM, "model")
    module: CausalLM = model_parser.instantiate(Namespace(model=config.model)).model
    module.check()
    stage, options = _strategy(config.trainer)
    return TrainingRun(
        name=Path(file).stem,
        adapter=adapter_label(config.model.adapter.class_path, config.model.adapter.init_args.as_dict()),
        module=module,
        rows=config.data.batch_size,
        length=config.data.max_length,
        precision=_precision(config.trainer.precision),
        stage=stage,
        devices=devices or _devices(config.trainer),
        **options,
    )


def _strategy(trainer: Namespace) -> tuple[int | None, dict[str, Any]]:
    """Return the ZeRO stage (``None`` without DeepSpeed), and ``bucket`` and ``overlap`` where they are configured."""
    strategy = trainer.strategy
    name = strategy if isinstance(strategy, str) else strategy.class_path
    if "fsdp" in name.lower() or "offload" in name:
        raise ValueError(f"trainer.strategy={name} is not estimated.")
    if "deepspeed" not in name.lower():
        return None, {}
    if isinstance(strategy, str):  # deepspeed, or deepspeed_stage_N
        return int(name[-1]) if name[-1].isdigit() else 2, {}
    options = strategy.init_args
    for option in ("offload_optimizer", "offload_parameters", "config"):
        if options.get(option):
            raise ValueError(f"trainer.strategy.init_args.{option}={options[option]} is not estimated; leave it unset.")
    configured = {"bucket": options.get("reduce_bucket_size"), "overlap": options.get("overlap_comm")}
    return options.stage, {name: value for name, value in configured.items() if value is not None}


def _precision(configured: Any) -> str:
    precision = str(cpu_trainer(configured).precision) if configured is not None else "32-true"
    if precision not in PRECISIONS:
        raise ValueError(
            f"trainer.precision must be one of {', '.join(PRECISIONS)} to be estimated, got {configured!r}."
        )
    return precision


def _devices(trainer: Namespace) -> int:
    configured = trainer.devices
    if isinstance(configured, list):
        return len(configured) * trainer.num_nodes
    number = int(configured) if str(configured).isdigit() else 0
    return (number or max(1, torch.cuda.device_count())) * trainer.num_nodes
