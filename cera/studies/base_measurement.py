"""Which runs of a study measure the perplexity of the base: the first of those that begin with the same one.

Runs share it where all settings agree that it may depend on: the model, its precision and the data. Settings that only
the training depends on are known by name; any other one counts, so that at worst a base is measured twice.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cera.foreign_yaml import load_yaml
from cera.studies.axes import path_of_config

BASE_VALIDATION = "trainer.num_sanity_val_steps"
"""The setting with which a run measures the perplexity of the base, before its first step."""

OF_TRAINING = (
    *(f"model.{name}" for name in ("adapter", "learning_rate", "weight_decay", "betas", "warmup", "schedule")),
    *(f"model.{name}" for name in ("loss_mean", "gradient_checkpointing", "max_new_tokens")),
    *(f"data.{name}" for name in ("seed", "shuffle_buffer", "with_replacement", "num_workers", "tokenize_once")),
    *(f"trainer.{name}" for name in ("max_steps", "max_epochs", "max_time", "val_check_interval", "callbacks")),
    *(f"trainer.{name}" for name in ("check_val_every_n_epoch", "log_every_n_steps", "accumulate_grad_batches")),
    *(f"trainer.{name}" for name in ("gradient_clip_val", "gradient_clip_algorithm", "logger")),
    *(BASE_VALIDATION, "seed_everything", "checkpoint_every", "answer_tokens", "name", "runs"),
)
"""Settings on which the base's perplexity does not depend, with all that is below them."""


class BaseIdentity:
    """Tells runs with different bases apart; each configuration file is read once.

    Example:
        >>> identity = BaseIdentity()
        >>> identity(("cera://parts/smol", "cera://adapters/lora"), {"trainer.max_steps": 20})
    """

    def __init__(self) -> None:
        self._contents: dict[Path, dict[str, Any]] = {}

    def __call__(self, configs: tuple[str, ...], settings: Mapping[str, Any]) -> str:
        """Return what the base's perplexity may depend on, as JSON: equal for runs that share it.

        Args:
            configs: Configuration files of a run, in the order in which they apply.
            settings: Its values by dotted key, which override the files'.
        """
        values: dict[str, Any] = {}
        for file in configs:
            self._add_file(path_of_config(file, Path()), (), values)
        _add(settings, "", values)
        return json.dumps(values, sort_keys=True, default=str)

    def _add_file(self, path: Path, including: tuple[Path, ...], values: dict[str, Any]) -> None:
        """Add the values of a file and, before them, of the files that it includes."""
        if path in including:
            return  # the run that reads it says so
        content = self._content(path)
        included = content.get("include")
        for name in included if isinstance(included, list) else [included] if included else []:
            self._add_file(path_of_config(str(name), path.parent), (*including, path), values)
        _add({key: value for key, value in content.items() if key != "include"}, "", values)

    def _content(self, path: Path) -> dict[str, Any]:
        if path not in self._contents:
            try:
                content = load_yaml(path.read_text(encoding="utf-8")) or {}
            except (OSError, ValueError, yaml.YAMLError):
                content = None
            # a file that cannot be read is one of its own; the run that reads it says what is wrong
            self._contents[path] = content if isinstance(content, dict) else {str(path): None}
        return self._contents[path]


def _add(content: Mapping[str, Any], prefix: str, values: dict[str, Any]) -> None:
    """Add the values that a base may depend on by dotted key; those of a list that is appended to are all kept."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if any(f"{key.removesuffix('+')}.".startswith(f"{known}.") for known in OF_TRAINING):
            continue
        if isinstance(value, Mapping):
            _add(value, f"{key}.", values)
        else:
            values[key] = [*values.get(key, []), value] if key.endswith("+") else value
