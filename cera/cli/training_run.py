"""Reads a training configuration as far as its size and memory depend on it, without a trainer or weights.

run = read_run("configs/cera_r128.yaml", ["--model.base=configs/models/llama-3-8b"])
run.module.check()  # number of trainable parameters
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, Namespace
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cera.cli.parser import ConfigurationParser
from cera.cli.preflight import on_hub
from cera.cli.shipped import configuration_file, similar_files
from cera.data import ChatData
from cera.memory.activations import cpu_trainer
from cera.memory.estimate import PRECISIONS, TrainingRun
from cera.runs.finished import adapter_label
from cera.training.module import CausalLM


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
    for key in ("name", "runs", "checkpoint_every", "answer_tokens", "reuse"):
        parser.add_argument(f"--{key}", type=Any)
    return parser


class BaseMissing(ValueError):
    """The base model's configuration is not on this machine, nor can it be had from the hub."""


def read_run(file: str, overrides: Sequence[str] = (), devices: int | None = None) -> TrainingRun:
    """Read a training configuration.

    Args:
        file: YAML file.
        overrides: Options of ``cera train`` that override it.
        devices: Number of devices; ``None`` takes the configured number, or this machine's GPUs if none is configured.

    Raises:
        BaseMissing: This machine lacks the base model's configuration.
        ValueError: The configuration is invalid, or sets something that cannot be estimated.
    """
    return build_run(parse_run(file, overrides), Path(file).stem, devices)


def parse_run(file: str, overrides: Sequence[str] = ()) -> Namespace:
    """Parse a training configuration: all of its keys are known and all values of the right type.

    Raises:
        ValueError: The configuration is invalid.
    """
    file = str(configuration_file(file))
    if not Path(file).is_file():  # jsonargparse would parse the name as a configuration
        raise ValueError(f"no such configuration: {file}. {similar_files(Path(file))}".rstrip())
    with _one_line():
        return training_parser().parse_args([f"--config={file}", *overrides])


def build_run(config: Namespace, name: str, devices: int | None = None) -> TrainingRun:
    """Return a parsed configuration as a training run whose adapter fits its base; see ``read_run``."""
    if missing := on_hub(config.model.base, "model", "config.json"):
        raise BaseMissing(
            f"this machine lacks {missing[0]}. --model.base also accepts a directory with the model's config.json."
        )
    with _one_line():
        model_parser = ConfigurationParser()
        model_parser.add_class_arguments(CausalLM, "model")
        module: CausalLM = model_parser.instantiate(Namespace(model=config.model)).model
        module.check()
        stage, options = _strategy(config.trainer)
        return TrainingRun(
            name=name,
            adapter=adapter_label(config.model.adapter.class_path, config.model.adapter.init_args.as_dict()),
            module=module,
            rows=config.data.batch_size,
            length=config.data.max_length,
            precision=_precision(config.trainer.precision),
            stage=stage,
            devices=devices or _devices(config.trainer),
            **options,
        )


@contextmanager
def _one_line() -> Iterator[None]:
    """Raise what is wrong with a configuration as a ``ValueError`` of one line."""
    try:
        yield
    except (ArgumentError, MisconfigurationException, TypeError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from error


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
