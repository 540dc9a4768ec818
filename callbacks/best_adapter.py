"""Keeps the adapter with the lowest validation loss in ``adapter_best/`` of the run directory, beside the last one."""

import json
import math
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cera.callbacks.adapter_file import write_adapter

BEST = "best.json"


class BestAdapter(Callback):
    """Writes the adapter after each validation whose loss is lower than at all before; see ``write_adapter``.

    ``adapter_best/best.json`` has its ``step`` and ``val/loss``. Commands take the directory as an adapter:
    ``cera evaluate --adapter runs/NAME/adapter_best``. A resumed run ends with the same adapter, since a checkpoint
    holds the lowest loss so far; until it is where it was, the directory may hold an adapter of a later step.
    """

    def __init__(self) -> None:
        self.best = math.inf

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the adapter if the loss, which is the same on all ranks, is the lowest; called on every rank."""
        loss = float(trainer.callback_metrics.get("val/loss", math.nan))
        if trainer.sanity_checking or trainer.state.fn != "fit" or not loss < self.best:
            return
        self.best = loss
        record = {"step": trainer.global_step, "val/loss": loss}
        write_adapter(trainer, pl_module, Path(trainer.default_root_dir) / "adapter_best", {BEST: json.dumps(record)})

    def state_dict(self) -> dict[str, Any]:
        """Return the lowest loss so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.best = state_dict["best"]
