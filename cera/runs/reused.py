"""A finished run with the same settings as a new one, which is copied in its place.

    earlier = finished_alike(Path("runs"), settings)
    if earlier is not None:
        copy_run(earlier, Path("runs/fig3/lora-r16-lr1e-3-seed0"), settings)

Studies share many runs: Figure 3 has those of Figure 1 at some of its learning rates.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from cera.foreign_files import FileError, read_json_object
from cera.runs.checkpoints import newest_checkpoint
from cera.runs.files import replacing
from cera.runs.finished import DIVERGED, FinishedRun
from cera.runs.settings import flat_settings, measuring_callbacks

OF_TRAINING = (
    *("environment.json", "hparams.yaml", "metrics.csv", DIVERGED, "events.out.tfevents.*"),
    *("spectra", "adapter", "checkpoints"),
)
"""What a training writes beside its configuration; what was measured later may be of other rows than a study's."""


def finished_alike(runs: Path, settings: Mapping[str, Any]) -> FinishedRun | None:
    """Return a run that has computed what a new one would compute, down to the rounding of its machine.

    All settings agree that change a number, and the callbacks that measure. A run that begins with a validation, of
    the base, is alike one that did so, too.

    Args:
        runs: A directory of runs, or of studies: its run directories are below it or one level further.
        settings: The whole configuration of the new run, as plain data.
    """
    wanted = _computes(settings)
    measures_base = (settings.get("trainer") or {}).get("num_sanity_val_steps") != 0
    for file in sorted([*runs.glob("*/config.yaml"), *runs.glob("*/*/config.yaml")]):
        with suppress(FileError):  # a run that just begins or is broken
            run = FinishedRun.read(file.parent)
            if _computes(run.config) != wanted:  # before its curves are read
                continue
            has_ended = run.divergence or (run.trained and newest_checkpoint(run.path / "checkpoints"))
            if has_ended and (not measures_base or 0 in run.curve("val/perplexity")):
                return run
    return None


def copy_run(run: FinishedRun, directory: Path, settings: Mapping[str, Any]) -> None:
    """Copy what the training of a run has written; the configuration, which makes it a run directory, comes last.

    Args:
        run: The run.
        directory: The new run directory; ``environment.json`` there says as ``reused_from`` where it comes from.
        settings: The whole configuration of the new run, as plain data.
    """
    for path in (path for pattern in OF_TRAINING for path in run.path.glob(pattern)):
        if path.is_dir():
            shutil.copytree(path, directory / path.name, dirs_exist_ok=True)
        else:
            shutil.copy2(path, directory / path.name)
    environment = directory / "environment.json"
    recorded = read_json_object(environment) if environment.exists() else {}
    recorded["reused_from"] = recorded.get("reused_from", str(run.path.resolve()))
    with replacing(environment) as unfinished:
        unfinished.write_text(json.dumps(recorded, indent=2) + "\n")
    names = {key: settings[key] for key in ("name", "runs") if key in settings}
    trainer = {**run.config["trainer"], "default_root_dir": str(directory)}
    with replacing(directory / "config.yaml") as unfinished:
        unfinished.write_text(yaml.safe_dump({**run.config, **names, "trainer": trainer}, sort_keys=False))


def _computes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the numbers of a run: its settings by name, and the callbacks that measure."""
    measuring = measuring_callbacks((settings.get("trainer") or {}).get("callbacks"))
    return {**flat_settings(settings), "measuring": json.dumps(measuring, sort_keys=True, default=str)}
