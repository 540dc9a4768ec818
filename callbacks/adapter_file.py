"""Keeps ``adapter/`` in the run directory, in PEFT's format, in step with the newest checkpoint."""

import shutil
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cera.runs.files import sync_tree
from cera.training.deepspeed import gather


class AdapterFile(Callback):
    """Writes the adapter whenever a checkpoint is written, and at the end of training.

    The directory loads with ``peft.PeftModel.from_pretrained``. A new one is written beside it and renamed, so there
    is never half an adapter, and for the moment between two renames none.

    Args:
        run_dir: The run directory.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / "adapter"

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called on every rank when a checkpoint is put together."""
        self._write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called on every rank."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: Any) -> None:
        prefix = "model."  # of the PeftModel in the LightningModule
        trainable = pl_module.trainable()
        weights = None  # PEFT finds them in the model, with whatever else the method saves, unless ZeRO-3 holds them
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
