"""Records the software, machine and commit of a run in ``environment.json`` of its directory."""

import json
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cera.foreign_files import read_json_object
from cera.runs.environment import training_environment
from cera.runs.files import replacing


class RunRecord(Callback):
    """Writes ``environment.json`` at the start of a fit; a resumed run appends its record to the list ``resumed``.

    Args:
        run_dir: The run directory.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / "environment.json"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record on the first rank."""
        if not trainer.is_global_zero:
            return
        record = {**training_environment(trainer), "trainable_parameters": trainable_parameters(pl_module)}
        if self.path.exists():
            first = read_json_object(self.path)
            resumed = {**record, "from_step": trainer.global_step}
            record = {**first, "resumed": [*first.get("resumed", []), resumed]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as file:
            file.write_text(json.dumps(record, indent=2) + "\n")


def trainable_parameters(module: LightningModule) -> int:
    """Return the number of trainable elements in ``module``; under ZeRO-3 those of all ranks."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters() if p.requires_grad)
