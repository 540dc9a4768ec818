"""What makes two runs the same run: the settings in which a resumed run must agree with the run as it was started.

A checkpoint's state means something only under the settings that it was made with. ``RULES`` decides for each setting;
``docs/training.md`` shows it as a table. What is refused is refused before a model is loaded, by the run's
``config.yaml``. A checkpoint holds what its own state depends on as well, and checks it when it is loaded.

Example:
    >>> differing_settings({"trainer": {"max_steps": 6}}, {"trainer": {"max_steps": 12}})
    ['trainer.max_steps: 6 there, 12 here']
"""

import json
import math
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy

from cera.cli.errors import UsageError
from cera.cli.trainer_arguments import ALIASES, REFUSALS
from cera.runs.finished import FinishedRun
from cera.runs.settings import class_name, measuring_callbacks
from cera.training.recipe import RECIPE


class Kind(StrEnum):
    """What a resumed run may do with a setting."""

    IDENTITY = "must agree"
    FREE = "free"
    DESIGN = "same by design"


class SettingRule(NamedTuple):
    """How settings are treated on resume.

    Attributes:
        names: Keys of the configuration.
        kind: Whether they may change.
        reason: Why, as a phrase.
        meaning: Turns a value into what is compared, so that spellings of one meaning agree.
    """

    names: tuple[str, ...]
    kind: Kind
    reason: str
    meaning: Callable[[Any], Any] = lambda value: value


def _file_names(value: Any) -> Any:
    """Return paths by their last part: the directory of a run may be called from elsewhere."""
    if isinstance(value, list):
        return [_file_names(item) for item in value]
    return Path(value).name if isinstance(value, str) else value


def _dataset(value: Any) -> Any:
    """Return a dataset's class and arguments, of ``data_files`` the names; the checkpoint has their sizes."""
    if not isinstance(value, dict):
        return value
    arguments = value.get("init_args") or {}
    return {**value, "init_args": {**arguments, "data_files": _file_names(arguments.get("data_files"))}}


def _adapter(value: Any) -> Any:
    """Return an adapter's class and arguments; the order of module names has no meaning."""
    arguments = value.get("init_args") or {}
    unordered = {k: sorted(v, key=str) if isinstance(v, list) else v for k, v in arguments.items()}
    return {**value, "init_args": unordered}


def _precision(value: Any) -> str:
    return ALIASES.get(str(value), str(value)) if value is not None else "32-true"


def _strategy(value: Any) -> Any:
    """Return DeepSpeed with its ZeRO stage, or ``"replicated"`` for the others, whose checkpoints are alike."""
    if not isinstance(value, dict) or "deepspeed" not in value["class_path"].lower():
        return "replicated"
    return {**value, "init_args": {"stage": (value.get("init_args") or {}).get("stage", 2)}}


def _measuring_callbacks(value: Any) -> Any:
    """Return the callbacks with curves of their own by class; what only one of two runs has agrees."""
    measuring = {class_name(callback): callback for callback in measuring_callbacks(value)}
    return {"class_path": "callbacks", "init_args": measuring}


ANY = object()
"""Stands for a value that agrees with all others."""

IN_PRODUCT = ("data.batch_size", "trainer.accumulate_grad_batches", "trainer.devices", "trainer.num_nodes")

RULES = (
    SettingRule(("model.base",), Kind.IDENTITY, "the adapter is a difference to its weights", _file_names),
    SettingRule(("model.adapter",), Kind.IDENTITY, "the saved weights are its", _adapter),
    SettingRule(
        tuple(f"model.{name}" for name in RECIPE), Kind.IDENTITY, "the recipe, which the optimizer's state is of"
    ),
    SettingRule(("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm"), Kind.IDENTITY, "the recipe"),
    SettingRule(("trainer.max_steps",), Kind.IDENTITY, "the learning-rate schedule spans them"),
    SettingRule(
        ("trainer.max_epochs", "trainer.limit_train_batches"),
        Kind.IDENTITY,
        "without `trainer.max_steps` the schedule spans them; with it they are free",
    ),
    SettingRule(("seed_everything",), Kind.IDENTITY, "it draws the order of the rows and the dropout"),
    SettingRule(("trainer.precision",), Kind.IDENTITY, "the type of the saved weights", _precision),
    SettingRule(("model.adapter_dtype", "model.quantization"), Kind.IDENTITY, "the type of the weights"),
    SettingRule(
        ("trainer.strategy",), Kind.IDENTITY, "checkpoints are DeepSpeed's, by ZeRO stage, or of all others", _strategy
    ),
    SettingRule(
        ("data.dataset",), Kind.IDENTITY, "the checkpoint stands at a row of it; files by name and size", _dataset
    ),
    SettingRule(
        ("data.validation_rows", "data.max_length", "data.overlong", "data.packing", "data.shuffle_buffer"),
        Kind.IDENTITY,
        "which documents are trained on, and in which order",
    ),
    SettingRule(
        ("data.template", "data.loss_on", "data.loss_on_end", "data.with_replacement"),
        Kind.IDENTITY,
        "what of them is trained on, and how they are drawn",
    ),
    SettingRule(
        IN_PRODUCT,
        Kind.IDENTITY,
        "their product, the rows of a step; each is free, except for the number of processes under DeepSpeed",
    ),
    SettingRule(("data.validation",), Kind.IDENTITY, "a curve is of one held-out set", _dataset),
    SettingRule(("trainer.limit_val_batches",), Kind.IDENTITY, "a curve is of one held-out set"),
    SettingRule(
        ("trainer.callbacks",),
        Kind.IDENTITY,
        "the arguments of `SpectralTracker` and `Forgetting`, whose curves are of one measurement; all else is free",
        _measuring_callbacks,
    ),
    SettingRule(
        ("trainer.accelerator", "trainer.benchmark", "trainer.deterministic"), Kind.FREE, "other rounding at most"
    ),
    SettingRule(
        ("model.gradient_checkpointing", "model.compile_layers", "model.attn_implementation"),
        Kind.FREE,
        "other rounding at most",
    ),
    SettingRule(
        ("trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.num_sanity_val_steps"),
        Kind.FREE,
        "when it is validated, not what",
    ),
    SettingRule(
        ("trainer.log_every_n_steps", "checkpoint_every", "trainer.enable_checkpointing"),
        Kind.FREE,
        "when it is logged and saved",
    ),
    SettingRule(
        ("trainer.max_time", "trainer.min_steps", "trainer.min_epochs"), Kind.FREE, "when it ends, not how it trains"
    ),
    SettingRule(
        (
            "trainer.logger",
            "trainer.enable_progress_bar",
            "trainer.enable_model_summary",
            "trainer.profiler",
            "trainer.detect_anomaly",
            "trainer.inference_mode",
            "trainer.plugins",
            "answer_tokens",
        ),
        Kind.FREE,
        "what is shown and logged, and where",
    ),
    SettingRule(
        ("data.num_workers", "data.max_malformed", "data.tokenize_once"), Kind.FREE, "how the same rows are read"
    ),
    SettingRule(
        ("model.max_new_tokens", "trainer.limit_test_batches", "trainer.limit_predict_batches", "evaluation"),
        Kind.FREE,
        "a fit does not use them",
    ),
    SettingRule(("ckpt_path", "weights_only"), Kind.FREE, "they choose the checkpoint"),
    SettingRule(("reuse",), Kind.FREE, "a run that goes on copies no other"),
    SettingRule(("name", "runs", "trainer.default_root_dir"), Kind.DESIGN, "they choose the run"),
    SettingRule(tuple(f"trainer.{name}" for name in REFUSALS), Kind.DESIGN, "only Lightning's default is supported"),
)
"""A rule for each setting."""

MEASURED = ("model.base", "model.adapter", "data.dataset", "data.validation_rows")
"""What `validate`, `test` and `predict` must have in common with the run: its adapter, and the rows it did not see."""


def check_same_run(run: Path, config: dict[str, Any], subcommand: str) -> None:
    """Raise ``UsageError`` if a command goes on with a run under settings that must agree and do not.

    Args:
        run: Directory of the run that the checkpoint is of; without a ``config.yaml`` nothing is checked.
        config: The command's configuration, as plain data.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
    """
    if not (run / "config.yaml").is_file():
        return
    try:
        saved = FinishedRun.read(run).config
    except ValueError as error:
        raise UsageError(str(error)) from error
    differing = differing_settings(saved, config, None if subcommand == "fit" else _measured(config))
    if differing:
        go_on = "resume it with the settings it was started with, or start a run of another --name"
        advice = go_on if subcommand == "fit" else "give the configuration of that run, or another --name"
        raise UsageError(f"{run} is another run ({'; '.join(differing)}): {advice}.")


def _measured(config: dict[str, Any]) -> tuple[str, ...]:
    separate = (config.get("data") or {}).get("validation") is not None
    return MEASURED[:2] if separate else MEASURED


def differing_settings(
    saved: dict[str, Any], current: dict[str, Any], names: tuple[str, ...] | None = None
) -> list[str]:
    """Return one line for each setting that must agree and does not.

    Args:
        saved: ``config.yaml`` of the run as it was started. What it lacks was added to the program later, and agrees.
        current: The configuration of the command.
        names: The settings to compare; ``None`` compares all that must agree.
    """
    lines = []
    for rule in RULES:
        for name in rule.names:
            if rule.kind is not Kind.IDENTITY or name in IN_PRODUCT or (names is not None and name not in names):
                continue
            there, here = _value(saved, name), _value(current, name)
            if ANY not in (there, here) and not _only_ends(name, saved, current):
                lines += _differences(name, rule.meaning(there), rule.meaning(here))
    return lines


def check_rows_of_a_step(run: Path, batch_size: int, trainer: Trainer) -> None:
    """Raise ``UsageError`` if a resumed run has another number of rows in an optimizer step.

    Args:
        run: Directory of the run, whose ``environment.json`` has the number of its processes.
        batch_size: Number of rows of a micro-batch of one process.
        trainer: The trainer that resumes the run.
    """
    record, file = run / "environment.json", run / "config.yaml"
    if not (record.is_file() and file.is_file()):
        return
    saved = FinishedRun.read(run).config
    processes = json.loads(record.read_text())["world_size"]
    there = (saved["data"]["batch_size"], saved["trainer"]["accumulate_grad_batches"], processes)
    here = (batch_size, trainer.accumulate_grad_batches, trainer.world_size)
    if math.prod(there) != math.prod(here):
        raise UsageError(
            f"{run} is another run (rows of a step: {_product(there)} there, {_product(here)} here, which are "
            "data.batch_size x trainer.accumulate_grad_batches x processes): make the products equal."
        )
    if isinstance(trainer.strategy, DeepSpeedStrategy) and processes != trainer.world_size:
        raise UsageError(f"{run} has a checkpoint of {processes} processes: DeepSpeed resumes it on as many.")


def _product(factors: tuple[int, ...]) -> str:
    return f"{' x '.join(map(str, factors))} = {math.prod(factors)}"


def _value(config: dict[str, Any], name: str) -> Any:
    """Return a setting of a configuration; ``ANY`` if the configuration lacks it."""
    group, _, key = name.rpartition(".")
    return (config.get(group) or {} if group else config).get(key, ANY)


def _only_ends(name: str, saved: dict[str, Any], current: dict[str, Any]) -> bool:
    """Return whether ``name`` only ends an epoch or the run, because the schedule spans ``trainer.max_steps``."""
    if name not in ("trainer.max_epochs", "trainer.limit_train_batches"):
        return False
    return all(_value(config, "trainer.max_steps") not in (None, -1, ANY) for config in (saved, current))


def _differences(name: str, there: Any, here: Any) -> list[str]:
    """Return a line for each argument in which two classes differ, or one line for other values.

    An argument that only one of the two has was added to the class, or removed, between two versions: it agrees.
    """
    if isinstance(there, dict) and isinstance(here, dict) and there.get("class_path") == here.get("class_path"):
        before, now = there.get("init_args") or {}, here.get("init_args") or {}
        shared = [key for key in before if key in now]
        return [line for key in shared for line in _differences(f"{name}.init_args.{key}", before[key], now[key])]
    return [] if there == here or ANY in (there, here) else [f"{name}: {_shown(there)} there, {_shown(here)} here"]


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"])
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def settings_table() -> str:
    """Return the rules as the table of ``docs/training.md``."""
    rows = ["| setting | on resume | |", "| --- | --- | --- |"]
    for rule in RULES:
        names = ", ".join(f"`{name}`" for name in rule.names)
        rows.append(f"| {names} | {rule.kind} | {rule.reason} |")
    return "\n".join(rows)
