"""A run directory as a study reads it: its configuration, its curves, its spectra."""

import csv
import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from cera.spectral.files import Spectra, spectra_files

DIVERGED = "diverged.json"
"""What ``cera.callbacks.DivergenceGuard`` leaves in the directory of a run that it stopped."""

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
LABELS = {"Cera": "CeRA", "Lora": "LoRA", "AdaLora": "AdaLoRA"}
WITH_DORA = {"Cera": "CeRA-DoRA", "Lora": "DoRA"}


class RunError(ValueError):
    """A directory is not that of a run, or lacks what a study needs."""


@dataclass(frozen=True)
class Run:
    """One run directory, read on demand.

    Attributes:
        path: The directory.
        config: ``config.yaml``, resolved, as plain data.
    """

    path: Path
    config: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "Run":
        """The run in ``path``.

        Raises:
            RunError: There is no readable ``config.yaml`` with an adapter and a learning rate in it.
        """
        file = Path(path) / "config.yaml"
        try:
            config = yaml.load(file.read_text(), LOADER)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise RunError(f"{path} is not a run directory: {' '.join(str(error).split())}") from error
        model = config.get("model") if isinstance(config, dict) else None
        adapter = model.get("adapter") if isinstance(model, dict) else None
        if not isinstance(adapter, dict) or "class_path" not in adapter:
            raise RunError(f"{path} is not a run directory: {file} names no model.adapter.")
        run = cls(Path(path), config)
        try:
            _ = run.learning_rate
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is not a run directory: {file} has no number as model.learning_rate.") from error
        return run

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def adapter(self) -> str:
        """As the paper calls it: CeRA, LoRA, DoRA, ..."""
        return adapter_name(self.config["model"]["adapter"]["class_path"], self._adapter_settings)

    @property
    def rank(self) -> int | None:
        """The adapter's r, where it has one."""
        return adapter_rank(self._adapter_settings)

    @property
    def label(self) -> str:
        """Adapter and rank, as a legend names them."""
        return adapter_label(self.config["model"]["adapter"]["class_path"], self._adapter_settings)

    @property
    def learning_rate(self) -> float:
        """The peak learning rate."""
        return float(self.config["model"]["learning_rate"])

    @property
    def _adapter_settings(self) -> dict[str, Any]:
        return self.config["model"]["adapter"].get("init_args") or {}

    @cached_property
    def identity(self) -> tuple[str, str]:
        """What the run trained on and how, without adapter and learning rate; and the adapter with its settings.

        Runs that agree in both differ in learning rate or seed alone: Fig. 2 draws them as one adapter's curves.
        """
        model = {k: v for k, v in self.config["model"].items() if k not in ("adapter", "learning_rate")}
        names = (
            "max_steps", "max_epochs", "accumulate_grad_batches", "gradient_clip_val", "precision", "devices",
            "num_nodes",
        )  # fmt: skip
        trainer = {k: (self.config.get("trainer") or {}).get(k) for k in names}
        study = {"model": model, "data": self.config.get("data"), "trainer": trainer}
        return json.dumps(study, sort_keys=True), json.dumps(self.config["model"]["adapter"], sort_keys=True)

    def curve(self, column: str) -> dict[int, float]:
        """A column of ``metrics.csv`` by optimizer steps done: 0 is before the first; empty before any is written.

        It is read once: what is asked of a run that is being written is answered as of one moment.
        """
        if column not in self._curves:
            self._curves[column] = curve(self.path / "metrics.csv", column)
        return self._curves[column]

    @cached_property
    def _curves(self) -> dict[str, dict[int, float]]:
        return {}

    @property
    def finished(self) -> bool:
        """Whether it has a validation after its last step; in a run by epochs, in its last epoch."""
        trainer = self.config.get("trainer") or {}
        steps, epochs = trainer.get("max_steps") or -1, trainer.get("max_epochs") or -1
        last = max(self.curve("val/perplexity"), default=0)
        return last >= steps if steps > 0 else self.curve("epoch").get(last, -1) + 1 >= epochs

    @property
    def divergence(self) -> str | None:
        """Why the run counts as diverged: the guard stopped it, or its last loss or perplexity is not finite."""
        record = self.path / DIVERGED
        if record.exists():
            try:
                return str(json.loads(record.read_text())["reason"])
            except (ValueError, KeyError, TypeError):
                return f"{record} is there"  # half written
        for column in ("train/loss", "val/perplexity"):
            values = self.curve(column)
            if values and not math.isfinite(last := values[max(values)]):
                return f"{column} is {last} at step {max(values)}"
        return None

    def spectra(self) -> list[Spectra]:
        """Read the spectra that ``cera.callbacks.SpectralTracker`` wrote, in order of steps."""
        return [Spectra.read(path) for path in spectra_files(self.path).values()]


def adapter_name(class_path: str, settings: dict[str, Any]) -> str:
    """The paper's name for a PEFT configuration class and its settings."""
    name = class_path.rpartition(".")[2].removesuffix("Config")
    return (WITH_DORA if settings.get("use_dora") else LABELS).get(name, name)


def adapter_rank(settings: dict[str, Any]) -> int | None:
    """The r in the settings of a PEFT configuration; of AdaLoRA, which has an unused one too, the r it starts with."""
    return settings.get("init_r") or settings.get("r")


def adapter_label(class_path: str, settings: dict[str, Any]) -> str:
    """Name and rank of a PEFT configuration class with its settings, as a legend names it."""
    name, rank = adapter_name(class_path, settings), adapter_rank(settings)
    return name if rank is None else f"{name} r={rank}"


def curve(path: Path, column: str) -> dict[int, float]:
    """A column of a ``metrics.csv`` by optimizer steps done; without a last line that is still being written."""
    try:
        lines = path.read_text(errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    values: dict[int, float] = {}
    for row in csv.DictReader(line for line in lines if line.endswith("\n")):
        value, step = row.get(column), row.get("step") or ""
        if value and step.isdigit():
            # Lightning numbers steps from 0; the base, before the first, is logged at 0 too, and in no epoch
            base = column.startswith("val/") and not row.get("epoch")
            with suppress(ValueError):  # a line in which a process was killed, and a resumed one went on
                values[int(step) + (0 if base else 1)] = float(value)
    return values


def labels(runs: Iterable[Run]) -> dict[str, str]:
    """A name for each adapter among the runs, by ``Run.identity[1]``.

    It is ``Run.label``, and where several adapters share that, also the settings in which they differ, as in
    "CeRA r=64, dropout=0.1".
    """
    alike: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        alike.setdefault(run.label, {})[run.identity[1]] = run._adapter_settings
    names = {}
    for label, settings in alike.items():
        keys = sorted({key for of in settings.values() for key in of})
        differing = [key for key in keys if len({str(of.get(key)) for of in settings.values()}) > 1]
        for identity, of in settings.items():
            names[identity] = ", ".join([label, *(f"{key}={of.get(key)}" for key in differing)])
    return names


def siblings(path: str | Path) -> list[Run]:
    """All runs in the directory that ``path`` lies in, in the order of their names; what is no run is passed over."""
    return find_runs(Path(path).resolve().parent)


def find_runs(runs: str | Path) -> list[Run]:
    """All runs in a directory of runs, in the order of their names; what is no run is passed over."""
    found = []
    for path in sorted(Path(runs).iterdir()):
        with suppress(RunError):
            found.append(Run.read(path))
    return found
