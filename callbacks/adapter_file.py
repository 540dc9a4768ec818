"""Saves the adapter in PEFT's format to ``adapter/`` of the run directory, along with each checkpoint."""

import shutil
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cera.runs.files import sync_tree
from cera.training.deepspeed import gather


class AdapterFile(Callback):
    """Writes the adapter whenever a checkpoint is written, and at the end of training.

    The directory loads with ``peft.PeftModel.from_pretrained``. A new adapter is written beside the old one and then
    renamed, so the directory never holds half an adapter; between the two renames it is absent for a moment.

    Args:
        run_dir: The run directory.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / "adapter"

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the adapter. Lightning calls this on every rank when it assembles a checkpoint."""
        self._write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the trained adapter; called on every rank."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: Any) -> None:
        prefix = "model."  # the LightningModule's attribute that holds the PeftModel
        trainable = pl_module.trainable()
        weights = None  # PEFT collects them from the model, unless ZeRO-3 has partitioned them
        if any(hasattr(p, "ds_id") for p in trainable.values()):
            weights = {k.removeprefix(prefix): v for k, v in gather(trainable).items()}
        if not trainer.is_global_zero:
            return
        unfinished, old = self.path.with_name(".adapter.unfinished"), self.path.with_name(".adapter.old")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        pl_module.model.save_pretrained(unfinished, state_dict=weights, save_embedding_layers=False)
        sync_tree(unfinished)
        if self.path.exists():
            self.path.rename(old)
        unfinished.rename(self.path)
        shutil.rmtree(old, ignore_errors=True)
