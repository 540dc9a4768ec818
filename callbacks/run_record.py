"""Keeps ``environment.json`` in the run directory: with what, on what and from which commit a run was made."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cera.runs.checkpoints import replacing

PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "peft",
    "datasets",
    "torchmetrics",
    "deepspeed",
    "bitsandbytes",
    "trl",
)


class RunRecord(Callback):
    """Writes ``environment.json`` at the start of a fit; a resumed run adds its own behind it, under ``resumed``.

    Args:
        run_dir: The run directory.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / "environment.json"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called on every rank; the first one writes."""
        if trainer.is_global_zero:
            record = {**environment(trainer), "trainable_parameters": trainable_parameters(pl_module)}
            if self.path.exists():
                first = json.loads(self.path.read_text())
                resumed = {**record, "from_step": trainer.global_step}
                record = {**first, "resumed": [*first.get("resumed", []), resumed]}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as file:
                file.write_text(json.dumps(record, indent=2) + "\n")


def environment(trainer: Trainer) -> dict[str, Any]:
    """Versions, commit, seed, device and command of this run, as plain data."""
    device = trainer.strategy.root_device
    return {
        "command": sys.argv,
        "commit": git_commit(),
        "seed": int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type,
        "world_size": trainer.world_size,
        "threads": torch.get_num_threads(),
        "precision": str(trainer.precision),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed for name in PACKAGES if (installed := installed_version(name))},
    }


def trainable_parameters(module: LightningModule) -> int:
    """How many numbers are trained, wherever ZeRO-3 keeps them."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters() if p.requires_grad)


def installed_version(package: str) -> str | None:
    """The version of an installed package, or ``None``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the checkout this code lies in, with ``-dirty`` behind it if files differ; ``None`` outside git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
