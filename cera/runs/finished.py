"""Reads a run directory: its configuration, its curves and its spectra. Needs no Lightning.

Example:
    >>> run = FinishedRun.read("runs/smol_cera")
    >>> run.label, run.learning_rate, run.curve("val/perplexity")
    ('CeRA r=64', 0.0003, {0: 12.1, 50: 3.4, 100: 3.1})
"""

import csv
import json
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, NamedTuple

import yaml

from cera.foreign_files import FileError, one_line, require_file
from cera.foreign_yaml import load_yaml
from cera.runs.added import ADDED_TO_CERA, as_before, without_added
from cera.runs.checkpoints import newest_checkpoint, step_of
from cera.runs.moved import current_class_paths
from cera.spectral.files import Spectra, spectra_files

DIVERGED = "diverged.json"
"""The file that ``cera.callbacks.DivergenceGuard`` writes to the directory of a run that it stopped."""

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times as fast
STUDY_SETTINGS = (
    "max_steps",
    "max_epochs",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "limit_train_batches",
    "precision",
    "devices",
    "num_nodes",
)
"""The settings of the trainer in which all runs of a study agree."""

LABELS = {"Cera": "CeRA", "Lora": "LoRA", "GaussianLora": "LoRA", "AdaLora": "AdaLoRA"}
WITH_DORA = {"Cera": "CeRA-DoRA", "Lora": "DoRA", "GaussianLora": "DoRA"}


class RunError(FileError):
    """A directory is not a run directory, or lacks files that a study needs."""


class RunIdentity(NamedTuple):
    """What runs are grouped by; runs with the same identity differ only in learning rate or seed (paper Fig. 2).

    Attributes:
        study: Data, model and recipe, as JSON.
        adapter: The adapter with its settings, as JSON.
    """

    study: str
    adapter: str


@dataclass(frozen=True)
class FinishedRun:
    """One run directory, whose files are read on demand.

    The run may still be in progress: each file is then read once, as it is at that moment.

    Attributes:
        path: The directory.
        config: ``config.yaml``, resolved, as plain data, with the class paths of today.
    """

    path: Path
    config: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "FinishedRun":
        """Return the run in ``path``.

        Raises:
            RunError: ``path`` has no readable ``config.yaml`` with an adapter and a learning rate.
        """
        file = Path(path) / "config.yaml"
        config = read_config(path)
        adapter = config["model"].get("adapter")
        if not isinstance(adapter, dict) or not isinstance(adapter.get("class_path"), str):
            raise RunError(f"{path} is not a run directory: {file} names no model.adapter.")
        run = cls(Path(path), config)
        try:
            _ = run.learning_rate
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is not a run directory: {file} has no number as model.learning_rate.") from error
        run._check_types(file)
        return run

    def _check_types(self, file: Path) -> None:
        """Raise ``RunError`` if a setting that is read later has a type that no run gives it."""
        trainer, settings = self.config.get("trainer"), self.config["model"]["adapter"].get("init_args")
        for name, value in (("trainer", trainer), ("model.adapter.init_args", settings)):
            if not isinstance(value, dict | None):
                raise RunError(f"{file}: {name} must be a mapping, got {short_repr(value)}.")
        numbers = {f"trainer.{name}": (trainer or {}).get(name) for name in ("max_steps", "max_epochs")}
        for name, value in {**numbers, "the adapter's r": self.rank}.items():
            if value is not None and type(value) is not int:
                raise RunError(f"{file}: {name} must be an integer, got {short_repr(value)}.")
        try:
            _ = self.identity
        except (TypeError, ValueError, RecursionError) as error:
            raise RunError(f"{file} has values that no configuration has: {one_line(error)}.") from error

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def adapter(self) -> str:
        """The adapter's name in the paper: CeRA, LoRA, DoRA, ..."""
        return adapter_name(self.config["model"]["adapter"]["class_path"], self._adapter_settings)

    @property
    def rank(self) -> int | None:
        """The adapter's r, or ``None`` if it has none."""
        return adapter_rank(self._adapter_settings)

    @property
    def label(self) -> str:
        """Adapter and rank for a legend, such as "CeRA r=64"."""
        return adapter_label(self.config["model"]["adapter"]["class_path"], self._adapter_settings)

    @property
    def learning_rate(self) -> float:
        """The peak learning rate."""
        return float(self.config["model"]["learning_rate"])

    @property
    def _adapter_settings(self) -> dict[str, Any]:
        return self.config["model"]["adapter"].get("init_args") or {}

    @cached_property
    def identity(self) -> RunIdentity:
        """What the run has in common with others: its study and its adapter, without learning rate and seed."""
        model = {k: v for k, v in self.config["model"].items() if k not in ("adapter", "learning_rate")}
        trainer_settings = self.config.get("trainer") or {}
        trainer = {name: trainer_settings.get(name) for name in STUDY_SETTINGS}
        study = as_before({"model": model, "data": self.config.get("data"), "trainer": trainer})
        # earlier runs have fewer settings
        given = ((k, v) for k, v in self._adapter_settings.items() if v is not None)
        settings = without_added(given, ADDED_TO_CERA)
        adapter = {**self.config["model"]["adapter"], "init_args": settings}
        return RunIdentity(json.dumps(study, sort_keys=True), json.dumps(adapter, sort_keys=True))

    def curve(self, column: str) -> dict[int, float]:
        """Return a column of ``metrics.csv`` by optimizer steps done; step 0 is the base model.

        The result is empty if nothing is written yet. Each column is read only once, so that all properties of a run
        in progress describe the same moment.
        """
        if column not in self._curves:
            self._curves[column] = curve(self.path / "metrics.csv", column)
        return self._curves[column]

    @cached_property
    def _curves(self) -> dict[str, dict[int, float]]:
        return {}

    @property
    def finished(self) -> bool:
        """Whether there is a validation after the last step, or, without ``max_steps``, in the last epoch."""
        trainer = self.config.get("trainer") or {}
        steps, epochs = trainer.get("max_steps") or -1, trainer.get("max_epochs") or -1
        last = max(self.curve("val/perplexity"), default=0)
        return last >= steps if steps > 0 else self.curve("epoch").get(last, -1) + 1 >= epochs

    @property
    def trained(self) -> bool:
        """Whether the training has ended with everything saved: the last checkpoint is of the last validation."""
        if not self.finished:
            return False
        newest = newest_checkpoint(self.path / "checkpoints")
        return newest is None or (step_of(newest) or 0) >= max(self.curve("val/perplexity"))

    @property
    def divergence(self) -> str | None:
        """Why the run counts as diverged: the guard stopped it, or its last loss or perplexity is not finite.

        ``None`` if it did not diverge.
        """
        record = self.path / DIVERGED
        if record.exists():
            try:
                return str(json.loads(record.read_text())["reason"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                return f"{record} is there"  # only partly written
        for column in ("train/loss", "val/perplexity"):
            values = self.curve(column)
            if values and not math.isfinite(last := values[max(values)]):
                return f"{column} is {last} at step {max(values)}"
        return None

    def spectra(self) -> list[Spectra]:
        """Read the spectra that ``cera.callbacks.SpectralTracker`` wrote, in order of steps."""
        return [Spectra.read(path) for path in spectra_files(self.path).values()]


def read_config(run_dir: str | Path) -> dict[str, Any]:
    """Return ``config.yaml`` of a run directory, with the class paths of today.

    Raises:
        RunError: The file cannot be read, or has no ``model`` with settings.
    """
    file = Path(run_dir) / "config.yaml"
    try:
        config = load_yaml(file.read_text(), LOADER)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{run_dir} is not a run directory: {one_line(error)}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise RunError(f"{run_dir} is not a run directory: {file} names no model.adapter.")
    return current_class_paths(config)


def adapter_name(class_path: str, settings: dict[str, Any]) -> str:
    """Return the paper's name for a PEFT configuration class with its settings."""
    name = class_path.rpartition(".")[2].removesuffix("Config")
    return (WITH_DORA if settings.get("use_dora") else LABELS).get(name, name)


def adapter_rank(settings: dict[str, Any]) -> int | None:
    """Return r from the settings of a PEFT configuration; of AdaLoRA the initial rank, as its ``r`` is not used."""
    return settings.get("init_r") or settings.get("r")


def adapter_label(class_path: str, settings: dict[str, Any]) -> str:
    """Return name and rank of a PEFT configuration class with its settings, for a legend."""
    name, rank = adapter_name(class_path, settings), adapter_rank(settings)
    return name if rank is None else f"{name} r={rank}"


def curve(path: Path, column: str) -> dict[int, float]:
    """Return a column of a ``metrics.csv`` by optimizer steps done, without an incomplete last line.

    Raises:
        RunError: The file cannot be read, or is no table with a column ``step``.
    """
    if not path.exists():
        return {}
    try:
        lines = require_file(path).read_text(errors="replace").splitlines(keepends=True)
        reader = csv.DictReader(line for line in lines if line.endswith("\n"))
        if reader.fieldnames is not None and "step" not in reader.fieldnames:
            raise RunError(f"{path} has no column step: not the metrics of a run.")
        return _column(reader, column)
    except (OSError, csv.Error) as error:
        raise RunError(f"{path} cannot be read: {one_line(error)}.") from error


def _column(rows: Iterable[dict[str, str | None]], column: str) -> dict[int, float]:
    values: dict[int, float] = {}
    for row in rows:
        value, step = row.get(column), row.get("step") or ""
        if value and step.isdigit():
            # Lightning numbers steps from 0; the base model is logged at step 0, too, but without an epoch
            is_base = column.startswith(("val/", "forgetting/")) and not row.get("epoch")
            with suppress(ValueError):  # a killed process may leave half a line, to which a resumed one appends
                values[int(step) + (0 if is_base else 1)] = float(value)
    return values


def labels(runs: Iterable[FinishedRun]) -> dict[str, str]:
    """Return a distinct label for each adapter among the runs, by ``FinishedRun.identity.adapter``.

    Adapters that share ``FinishedRun.label`` also get the settings in which they differ, as in
    "CeRA r=64, dropout=0.1".
    """
    settings_by_label: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        settings_by_label.setdefault(run.label, {})[run.identity.adapter] = run._adapter_settings
    names = {}
    for label, adapters in settings_by_label.items():
        keys = sorted({key for settings in adapters.values() for key in settings})
        differing = [key for key in keys if len({str(settings.get(key)) for settings in adapters.values()}) > 1]
        for adapter, settings in adapters.items():
            names[adapter] = ", ".join([label, *(f"{key}={settings.get(key)}" for key in differing)])
    return names


def siblings(path: str | Path) -> list[FinishedRun]:
    """Return all runs in the directory that contains ``path``, sorted by name; other directories are skipped."""
    return find_runs(Path(path).resolve().parent)


def find_runs(runs: str | Path, visit: Callable[[list[Path]], Iterable[Path]] = iter) -> list[FinishedRun]:
    """Return all runs in a directory of runs, sorted by name; other directories are skipped.

    Args:
        runs: The directory.
        visit: Yields the directories of a list one by one, and may show how far that is.
    """
    readable = []
    for path in visit(sorted(Path(runs).iterdir())):
        with suppress(RunError):
            readable.append(FinishedRun.read(path))
    return readable
