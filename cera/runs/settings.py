"""The settings that decide what a run computes, flat and by name, and those in which several runs differ.

>>> flat_settings({"model": {"adapter": {"class_path": "cera.CeraConfig", "init_args": {"r": 8}}}})
{'adapter': 'CeraConfig', 'adapter.r': 8}
>>> run_labels([FinishedRun.read("runs/a"), FinishedRun.read("runs/b")])
['CeRA r=64, scaling=1.0', 'CeRA r=64, scaling=4.0']
"""

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from cera.runs.finished import FinishedRun, adapter_label

GROUPS = ("model", "data", "trainer", "seed_everything")
"""The groups of a configuration that decide what a run computes; the others say where it is kept and what is shown."""

BOOKKEEPING = {
    *("max_new_tokens", "data.num_workers", "data.tokenize_once", "data.tokenizer"),
    *(f"trainer.{name}" for name in ("logger", "callbacks", "default_root_dir", "log_every_n_steps", "profiler")),
    *(f"trainer.{name}" for name in ("enable_progress_bar", "enable_model_summary", "enable_checkpointing")),
    *(f"trainer.{name}" for name in ("enable_autolog_hparams", "model_registry", "max_time", "num_sanity_val_steps")),
    *(f"trainer.{name}" for name in ("limit_test_batches", "limit_predict_batches", "inference_mode")),
    # of which only Lightning's default is supported
    *(f"trainer.{name}" for name in ("fast_dev_run", "overfit_batches", "barebones", "sync_batchnorm")),
    *(f"trainer.{name}" for name in ("reload_dataloaders_every_n_epochs", "use_distributed_sampler")),
    # what PEFT keeps of a saved adapter
    *(f"adapter.{name}" for name in ("task_type", "peft_type", "auto_mapping", "peft_version", "inference_mode")),
    *(f"adapter.{name}" for name in ("base_model_name_or_path", "revision")),
}
"""Settings that change no number of a training."""

MEASURING = ("SpectralTracker", "Forgetting")
"""Callbacks with curves of their own, whose arguments decide what is measured."""

IN_LABEL = {"adapter", "adapter.r", "adapter.init_r", "adapter.use_dora"}
"""Settings that ``adapter_label`` shows."""


def flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration by dotted name, as in ``adapter.scaling`` and ``data.dataset.size``.

    Those of ``model`` have no prefix. A class is its name, and its arguments follow. Lists are JSON.

    Args:
        config: A configuration as plain data, such as ``FinishedRun.config``.
    """
    flat: dict[str, Any] = {}
    for group in GROUPS:
        settings = config.get(group)
        if isinstance(settings, Mapping):
            for name, value in settings.items():
                _flatten(name if group == "model" else f"{group}.{name}", value, flat)
        elif settings is not None:
            flat[group] = settings
    if "seed_everything" in flat:
        flat["seed"] = flat.pop("seed_everything")
    return {name: value for name, value in flat.items() if name not in BOOKKEEPING}


def measuring_callbacks(callbacks: Any) -> list[dict[str, Any]]:
    """Return those of the configured callbacks, a list or a single one, that are in ``MEASURING``."""
    given = callbacks if isinstance(callbacks, list) else [callbacks]
    return [each for each in given if isinstance(each, dict) and class_name(each) in MEASURING]


def class_name(configured: Mapping[str, Any]) -> str:
    """Return the name of a configured class without its module."""
    return str(configured.get("class_path")).rpartition(".")[2]


def arguments(instance: object) -> dict[str, Any]:
    """Return the arguments of an object's class that are its attributes, as the plain data of a configuration."""
    names = [name for name in inspect.signature(type(instance)).parameters if hasattr(instance, name)]
    return {name: _plain(getattr(instance, name)) for name in names}


def run_labels(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a label of each run: adapter and rank, and every setting in which the runs differ."""
    return config_labels([run.config for run in runs])


def config_labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a label of each configuration; see ``run_labels``.

    Adapters' settings are compared among adapters of one class. A setting that a configuration lacks, as those of
    earlier versions do, is no difference.
    """
    settings = [flat_settings(config) for config in configs]
    kinds = [class_name(config["model"]["adapter"]) for config in configs]
    labels = []
    for config, flat, kind in zip(configs, settings, kinds, strict=True):
        alike = [other for other, other_kind in zip(settings, kinds, strict=True) if other_kind == kind]
        names = [name for name in flat if name not in IN_LABEL]
        differing = [name for name in names if _differs(name, alike if name.startswith("adapter.") else settings)]
        label = adapter_label(kind, config["model"]["adapter"].get("init_args") or {})
        labels.append(", ".join([label, *(f"{name.removeprefix('adapter.')}={flat[name]}" for name in differing)]))
    return labels


def _differs(name: str, settings: Iterable[Mapping[str, Any]]) -> bool:
    return len({json.dumps(each[name]) for each in settings if name in each}) > 1


def _flatten(name: str, value: Any, flat: dict[str, Any]) -> None:
    if isinstance(value, Mapping) and "class_path" in value:
        flat[name] = class_name(value)
        for key, item in (value.get("init_args") or {}).items():
            _flatten(f"{name}.{key}", item, flat)
        return
    if name.startswith("adapter.") and isinstance(value, list):
        value = sorted(value, key=str)  # names of modules, whose order has no meaning
    scalar = isinstance(value, str | int | float | bool | None)
    flat[name] = value if scalar else json.dumps(value, sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, set | tuple):
        return sorted(value, key=str) if isinstance(value, set) else list(value)
    if isinstance(value, str | int | float | bool | None | Mapping | list):
        return value
    settings = arguments(value) if is_dataclass(value) else {}  # others, such as modules, are more than settings
    return {"class_path": f"{type(value).__module__}.{type(value).__qualname__}", "init_args": settings}
