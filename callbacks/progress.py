"""Progress bars for training, in optimizer steps, and for the answers of ``predict``."""

import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks.progress import ProgressBar
from tqdm import tqdm

from cera.progress import StatusBar
from cera.training.throughput import Meter


class Progress(ProgressBar):
    """Shows loss, perplexity, tokens per second and remaining time over the optimizer steps of the run.

    Lightning's bars count the batches of an epoch, whose number is unknown for a stream.

    Args:
        refresh: Seconds between updates on a terminal; see ``cera.progress`` for other outputs.
    """

    def __init__(self, refresh: float = 1.0) -> None:
        super().__init__()
        self.refresh = refresh
        self._bar: StatusBar | None = None
        self._meter = Meter()
        self._enabled = True

    def disable(self) -> None:
        """Disable the bar; the trainer calls this on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Enable the bar."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the current step."""
        if self._enabled:
            self._bar = self._opened("train", "step", trainer.global_step, pl_module.total_steps)

    def _opened(self, what: str, unit: str, initial: int = 0, total: Any = None) -> StatusBar:
        return StatusBar(None, what, unit, sys.stdout, self.refresh, total=total, initial=initial)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._meter.start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pause the clock: validation time does not count towards tokens per second."""
        self._meter.pause()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar when the optimizer has stepped."""
        self._meter.add(batch)
        if self._bar is not None and trainer.global_step > self._bar.n:
            shown = {k.rpartition("/")[2]: f"{v:.3f}" for k, v in trainer.progress_bar_metrics.items() if "/" in k}
            speed = {"tokens/s": f"{self.tokens_per_second * trainer.world_size:.0f}"}
            self._bar.set_postfix({**shown, **speed}, refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    @property
    def tokens_per_second(self) -> float:
        """Tokens, without padding, per second of training on this rank, including the time spent waiting for data."""
        return self._meter.tokens_per_second

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar that counts answers; their total number is unknown for a stream."""
        if self._enabled:
            self._bar = self._opened("predict", "answer")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance the bar by the number of answers in this rank's batch."""
        if self._bar is not None:
            self._bar.update(len(outputs))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self.on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error stands on a line of its own."""
        self.on_train_end(trainer, pl_module)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without tearing the bar."""
        tqdm.write(" ".join(map(str, args)), file=sys.stdout)
