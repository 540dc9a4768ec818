"""Writes what ``trainer.test`` measures to a file of the run directory, which a study reads."""

import json
import math
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cera.runs.files import replacing


class MeasuredFile(Callback):
    """Writes the metrics of a test, such as ``test/perplexity``, as a JSON object.

    Args:
        file: Name of the file in the run directory (``trainer.default_root_dir``), which is replaced.
    """

    def __init__(self, file: str = "test.json") -> None:
        self.file = file

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file on the first rank. A value that is not finite is text, as JSON has no number for it."""
        if not trainer.is_global_zero:
            return
        values = {name: value.item() for name, value in sorted(trainer.callback_metrics.items())}
        shown = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        with replacing(Path(trainer.default_root_dir) / self.file) as unfinished:
            unfinished.write_text(json.dumps(shown, indent=2) + "\n")
