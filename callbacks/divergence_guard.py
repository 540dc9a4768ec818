"""Stops a run that diverges, before the optimizer step that would spoil its weights."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from cera.runs.files import replacing
from cera.runs.finished import DIVERGED


class Diverged(RuntimeError):
    """Training was stopped by ``DivergenceGuard``.

    Attributes:
        step: Number of optimizer steps done.
        loss: Training loss of the step at which training stopped, in nats per token.
        learning_rate: Learning rate of the step that was not made.
        reason: What was not finite or too large.
        saved: A sentence on where the state was saved; ``Checkpoints`` fills it in.
    """

    def __init__(self, step: int, loss: float, learning_rate: float, reason: str) -> None:
        super().__init__(reason)
        self.step = step
        self.loss = loss
        self.learning_rate = learning_rate
        self.reason = reason
        self.saved = "Checkpoints are off, so the state was not saved."

    def __str__(self) -> str:
        numbers = f"loss {self.loss:g}, learning rate {self.learning_rate:g}"
        return f"training diverged after step {self.step}: {self.reason} ({numbers}). {self.saved}"


class DivergenceGuard(Callback):
    """Raises ``Diverged`` for a loss that is NaN, infinite or over a threshold, or a gradient that is not finite.

    It checks the loss of the whole step, over all ranks and micro-batches, after the backward pass and before the
    optimizer's step, so the weights are still those before it; every rank raises at the same step. ``Checkpoints``
    then saves that state, and ``diverged.json`` in the run directory says what happened, until the run goes on.
    DeepSpeed does not expose gradients: only the loss is checked there. Loss scaling (16-mixed) skips steps with
    infinite gradients by itself, so they do not stop the run. A validation perplexity that is not finite does.

    Args:
        max_loss: Largest training loss in nats per token; ``None`` allows any that is finite.

    Raises:
        ValueError: ``max_loss`` is not positive.
    """

    def __init__(self, max_loss: float | None = None) -> None:
        if max_loss is not None and not max_loss > 0:
            raise ValueError(f"DivergenceGuard.max_loss must be a positive number, got {max_loss}.")
        self.max_loss = max_loss

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delete the record of an earlier divergence: a resumed run has not diverged."""
        if trainer.is_global_zero:
            (Path(trainer.default_root_dir) / DIVERGED).unlink(missing_ok=True)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the step; DeepSpeed calls this per micro-batch; before the last, the loss is the previous step's."""
        logged = trainer.callback_metrics.get("train/loss")  # of this step already, and the mean over ranks
        loss = math.nan if logged is None else float(logged)
        if logged is not None and not math.isfinite(loss):
            self._stop(trainer, loss, f"train/loss is {loss}")
        if self.max_loss is not None and loss > self.max_loss:
            self._stop(trainer, loss, f"train/loss is over max_loss={self.max_loss:g}")
        if isinstance(trainer.strategy, DeepSpeedStrategy) or getattr(trainer.precision_plugin, "scaler", None):
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if trainer.strategy.reduce_boolean_decision(not all_finite(gradients), all=False):
            self._stop(trainer, loss, "a gradient is not finite")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the validation perplexity during a fit."""
        perplexity = float(trainer.callback_metrics.get("val/perplexity", 1.0))  # absent before training
        if trainer.state.fn == "fit" and not math.isfinite(perplexity):
            self._stop(trainer, float(trainer.callback_metrics["val/loss"]), f"val/perplexity is {perplexity}")

    def _stop(self, trainer: Trainer, loss: float, reason: str) -> None:
        step, learning_rate = trainer.global_step, trainer.optimizers[0].param_groups[0]["lr"]
        if trainer.is_global_zero:
            # JSON knows no NaN; float() takes the string as well
            number = loss if math.isfinite(loss) else str(loss)
            record = {"step": step, "loss": number, "learning_rate": learning_rate, "reason": reason}
            path = Path(trainer.default_root_dir) / DIVERGED
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write_text(json.dumps(record, indent=2) + "\n")
        raise Diverged(step, loss, learning_rate, reason)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all elements of all ``tensors`` are finite."""
    filled = [tensor for tensor in tensors if tensor.numel()]
    return bool(
        torch.isfinite(get_total_norm(filled, norm_type=math.inf))
    )  # one reduction, so a GPU is waited for once
