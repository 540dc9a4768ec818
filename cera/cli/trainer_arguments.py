"""Checks every argument of Lightning's ``Trainer``, before anything is loaded: supported in a range, or refused.

``docs/training.md`` has the table for users. A new version of Lightning that adds an argument fails the tests until
the argument is listed here.
"""

import math
import os
import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace

from cera.cli.errors import UsageError

LARGEST = 2**63 - 1
"""The largest whole number that an argument may have."""

MOST_DEVICES = 1024
"""Maximum number of devices, each with a process, of a node."""


class Range(NamedTuple):
    """The values of an argument that are supported.

    Attributes:
        contains: Whether a value is in the range.
        expected: The range in words, which follow "must be".
    """

    contains: Callable[[Any], bool]
    expected: str


class Refusal(NamedTuple):
    """An argument that must stay at its default.

    Attributes:
        default: Lightning's default.
        instead: What to use, as a sentence.
    """

    default: Any
    instead: str


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST


def _are_devices(value: Any) -> bool:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value):
        value = int(value[:10])
    if isinstance(value, int):
        return value == -1 or (_whole(value, 1) and value <= MOST_DEVICES)
    return value != []


def _whole_or_none(least: int) -> Callable[[Any], bool]:
    return lambda value: value is None or _whole(value, least)


def _batches(least: int) -> Callable[[Any], bool]:
    """Return whether a value is a number of batches, or the float 1.0 or ``None`` for all of them."""

    def contains(value: Any) -> bool:
        if isinstance(value, float):
            return value == 1.0 or (value.is_integer() and value != 1.0 and value >= least)
        return value is None or _whole(value, least)

    return contains


def _is_duration(value: Any) -> bool:
    """Return whether a value is unset or a positive duration; Lightning would train nothing for none."""
    if isinstance(value, str):
        return bool(re.fullmatch(r"\d+:\d+:\d+:\d+", value) and re.search("[1-9]", value))
    if isinstance(value, dict | Namespace):
        return sum(vars(value).values() if isinstance(value, Namespace) else value.values()) > 0
    return value is None or value.total_seconds() > 0


def _anything(value: Any) -> bool:
    return True


STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
PRECISIONS = ("32-true", "bf16-true", "bf16-mixed", "16-true", "16-mixed")
"""``None`` is 32-true."""
ALIASES = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
"""Lightning's other spellings."""
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PROFILERS = ("simple", "advanced", "pytorch")
LIMIT = "a number of batches: 1 or more, or 1.0 for all (the length of a stream is not known, nor a fraction of it)"
VALIDATION_LIMIT = "a number of batches: 0 or more, or 1.0 for all (the length of a stream is not known)"

RANGES = {
    "accelerator": Range(lambda v: not isinstance(v, str) or v in ACCELERATORS, f"one of {', '.join(ACCELERATORS)}"),
    "strategy": Range(
        lambda v: not isinstance(v, str) or v in STRATEGIES,
        f"one of {', '.join(STRATEGIES[:2])} or the class cera.training.DeepSpeed (which shards, too)",
    ),
    "devices": Range(_are_devices, f"1 or more, to {MOST_DEVICES} on a node, -1 or auto for all, or a list"),
    "num_nodes": Range(_whole_or_none(1), "1 or more"),
    "precision": Range(
        lambda v: v is None or str(v) in (*PRECISIONS, *ALIASES),
        f"one of {', '.join(PRECISIONS)} (model.quantization keeps the base in 4 or 8 bits)",
    ),
    "logger": Range(_anything, "loggers"),
    "callbacks": Range(_anything, "callbacks"),
    "max_epochs": Range(lambda v: v in (None, -1) or _whole(v, 1), "1 or more, or unset if trainer.max_steps is set"),
    "min_epochs": Range(_whole_or_none(0), "0 or more"),
    "max_steps": Range(lambda v: v == -1 or _whole(v, 1), "positive"),
    "min_steps": Range(_whole_or_none(0), "0 or more"),
    "max_time": Range(_is_duration, "a duration DD:HH:MM:SS of a second or more"),
    "limit_train_batches": Range(_batches(1), LIMIT),
    "limit_val_batches": Range(_batches(0), VALIDATION_LIMIT),
    "limit_test_batches": Range(_batches(0), VALIDATION_LIMIT),
    "limit_predict_batches": Range(_batches(0), VALIDATION_LIMIT),
    "val_check_interval": Range(
        _batches(1),
        "a number of micro-batches: 1 or more, or 1.0 for the end of each epoch (the length of a stream is not known, "
        "nor a fraction of it, and a duration would validate a resumed run at other steps)",
    ),
    "check_val_every_n_epoch": Range(_whole_or_none(1), "1 or more, or null to count val_check_interval over epochs"),
    "num_sanity_val_steps": Range(lambda v: v in (None, -1) or _whole(v, 0), "0 or more, or -1 for all batches"),
    "log_every_n_steps": Range(_whole_or_none(1), "1 or more"),
    "enable_checkpointing": Range(_anything, "true or false"),
    "enable_progress_bar": Range(_anything, "true or false"),
    "enable_model_summary": Range(_anything, "true or false"),
    "accumulate_grad_batches": Range(lambda v: _whole(v, 1), "1 or more"),
    "gradient_clip_val": Range(
        lambda v: v is None or (math.isfinite(v) and v >= 0), "a positive number, or 0 or null for no clipping"
    ),
    "gradient_clip_algorithm": Range(lambda v: v in (None, "norm", "value"), "norm or value"),
    "deterministic": Range(lambda v: v in (None, True, False, "warn"), "true, false or warn"),
    "benchmark": Range(_anything, "true or false"),
    "inference_mode": Range(_anything, "true or false"),
    "profiler": Range(lambda v: not isinstance(v, str) or v in PROFILERS, f"one of {', '.join(PROFILERS)} or a class"),
    "detect_anomaly": Range(_anything, "true or false"),
    "plugins": Range(_anything, "plugins"),
    "default_root_dir": Range(_anything, "the run directory"),
}
"""Supported arguments."""

REFUSALS = {
    "fast_dev_run": Refusal(False, "Use trainer.max_steps=1 and trainer.limit_val_batches=1, which test all of a run."),
    "overfit_batches": Refusal(
        0.0, "A stream cannot repeat its first batches; use a small data.dataset and trainer.max_epochs."
    ),
    "use_distributed_sampler": Refusal(
        True, "The data are a stream that every rank reads its share of; leave it unset."
    ),
    "barebones": Refusal(False, "It leaves no metrics and no checkpoints; `python -m benchmarks` measures speed."),
    "sync_batchnorm": Refusal(False, "Language models have no batch norm; leave it unset."),
    "reload_dataloaders_every_n_epochs": Refusal(
        0, "The stream shuffles anew in each epoch by itself; leave it unset."
    ),
    "enable_autolog_hparams": Refusal(
        True, "The run directory has config.yaml, and Dashboard logs HParams; leave it unset."
    ),
    "model_registry": Refusal(None, "The adapter is in the run directory; upload that with `hf upload`."),
}
"""Arguments that are refused."""

NODE_VARIABLES = ("NODE_RANK", "GROUP_RANK", "RANK", "SLURM_PROCID")
"""Environment variables with which torchrun, SLURM and Lightning tell a process its place among several nodes."""

EVALUATION_LIMITS = {
    "validate": "limit_val_batches",
    "test": "limit_test_batches",
    "predict": "limit_predict_batches",
}
"""The limit of batches that, at 0, would leave a subcommand nothing to do."""


def check_trainer_arguments(trainer: Namespace, subcommand: str, name: str) -> None:
    """Raise ``UsageError`` for an argument that is refused or out of its range, or that another one contradicts.

    Args:
        trainer: The parsed arguments; classes are still class paths.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        name: Name of the run.
    """
    for argument, refusal in REFUSALS.items():
        if trainer[argument] != refusal.default:
            raise UsageError(f"trainer.{argument} is not supported, got {_shown(trainer[argument])}. {refusal.instead}")
    for argument, allowed in RANGES.items():
        value = trainer[argument]
        if not allowed.contains(value):
            raise UsageError(f"trainer.{argument} must be {allowed.expected}, got {_shown(value)}.")
    _check_strategy_class(trainer.strategy)
    _check_nodes(trainer.num_nodes)
    _check_plugins(trainer.plugins)
    _check_directory(trainer.default_root_dir, name)
    limit = EVALUATION_LIMITS.get(subcommand)
    if limit is not None and trainer[limit] == 0:
        raise UsageError(f"trainer.{limit} must be 1 or more, or unset: with 0, `{subcommand}` does nothing.")
    if subcommand == "fit":
        _check_fit(trainer)


def _check_fit(trainer: Namespace) -> None:
    """Check arguments of a fit against each other."""
    interval, epoch = trainer.val_check_interval, trainer.limit_train_batches
    if trainer.check_val_every_n_epoch is None:
        if isinstance(interval, float) and interval == 1.0:
            raise UsageError(
                "trainer.val_check_interval must be a whole number of micro-batches if trainer.check_val_every_n_epoch "
                "is null, got 1.0."
            )
    elif _whole(interval, 1) and _whole(epoch, 1) and interval > epoch and trainer.limit_val_batches != 0:
        raise UsageError(
            f"trainer.val_check_interval={interval} is longer than an epoch of trainer.limit_train_batches={epoch}: "
            "set trainer.check_val_every_n_epoch=null to count over epochs."
        )
    for shortest, longest in (("min_steps", "max_steps"), ("min_epochs", "max_epochs")):
        least, most = trainer[shortest], trainer[longest]
        if least is not None and most not in (None, -1) and least > most:
            raise UsageError(f"trainer.{shortest}={least} is more than trainer.{longest}={most}.")
    if trainer.gradient_clip_algorithm is not None and not trainer.gradient_clip_val:
        raise UsageError("trainer.gradient_clip_algorithm does nothing without trainer.gradient_clip_val; set both.")
    if trainer.gradient_clip_algorithm == "value" and "deepspeed" in _class_path(trainer.strategy).lower():
        raise UsageError("trainer.gradient_clip_algorithm must be norm or unset: DeepSpeed clips by norm only.")


def _check_strategy_class(strategy: Any) -> None:
    """Refuse Lightning's own sharding strategies: their checkpoints and scales of the loss are not the project's."""
    path = _class_path(strategy)
    module, _, name = path.rpartition(".")
    if module.startswith("lightning") and any(part in name for part in ("DeepSpeed", "FSDP", "ModelParallel", "XLA")):
        raise UsageError(f"trainer.strategy must be {RANGES['strategy'].expected}, got {path}.")


def _check_nodes(nodes: int) -> None:
    """Refuse several nodes if nothing has told this process which of them it is on: it would wait for the others."""
    if nodes > 1 and not any(variable in os.environ for variable in NODE_VARIABLES):
        raise UsageError(
            f"trainer.num_nodes must be 1, got {nodes}: start the run by torchrun or srun on each node to use several."
        )


def _check_plugins(plugins: Any) -> None:
    """Refuse plugins that write checkpoints or set the precision, which the project does."""
    for plugin in as_list(plugins):
        path = _class_path(plugin) if not isinstance(plugin, str) else plugin
        name = path.rpartition(".")[2]
        if name.endswith("CheckpointIO"):
            raise UsageError(f"trainer.plugins must not write checkpoints, got {path}: the run directory's are atomic.")
        if name.endswith("Precision"):
            raise UsageError(f"trainer.plugins must not set a precision, got {path}: use trainer.precision.")


def _check_directory(directory: str | None, name: str) -> None:
    """Refuse a directory of the user's own. One that another run's ``config.yaml`` recorded is replaced."""
    if directory is None or (Path(directory) / "config.yaml").is_file():
        return
    if not re.fullmatch(re.escape(name) + r"(@\d+)?", Path(directory).name):
        raise UsageError(
            f"trainer.default_root_dir is not supported, got {directory!r}. Use --runs and --name: a run is in "
            "RUNS/NAME."
        )


def as_list(value: Any) -> list[Any]:
    """Return the items of an argument of the trainer that is a list, one item or ``None``."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _class_path(value: Any) -> str:
    return str(getattr(value, "class_path", "") or "")


def _shown(value: Any) -> str:
    """Return a value as YAML writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_seed(seed: bool | int) -> None:
    """Raise ``UsageError`` for a seed that does not repeat the run: not a number, or out of numpy's range."""
    if isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UsageError(f"seed_everything must be a whole number from 0 to {2**32 - 1}, got {_shown(seed)}.")


def text_of_enumerations(config: Any) -> None:
    """Replace each value of a textual enumeration by its text, in place: Lightning's own classes have such defaults.

    Args:
        config: Configuration, of namespaces, mappings and lists, before objects are made.
    """
    values = vars(config) if isinstance(config, Namespace) else config
    for key, value in list(values.items() if isinstance(values, dict) else enumerate(values)):
        if isinstance(value, Enum) and isinstance(value, str):
            values[key] = value.value
        elif isinstance(value, Namespace | dict | list):
            text_of_enumerations(value)
