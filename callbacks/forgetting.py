"""Follows what training costs on general text: the loss on it, and the divergence from the base."""

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cera.data.texts import PlainText, text_batches
from cera.runs.loggers import log_now
from cera.training.forgetting import check_base_is_kept, measure
from cera.training.precision import adapter_autocast


class Forgetting(Callback):
    """Measures the adapted model and the base, which is the model without the adapter, on general text.

    Before the first step and at each validation it logs ``forgetting/loss`` and ``forgetting/perplexity`` of the
    adapted model, ``forgetting/loss_increase`` over the base's loss, and ``forgetting/kl``, KL(base || adapted); means
    over tokens, in nats (``cera.training.forgetting``). Each measurement takes two forward passes of each batch. Every
    rank measures the same batches.

    Args:
        text: The text. Its texts are encoded as any text, without a chat template.
        batches: Number of batches, each of ``data.batch_size`` rows of ``data.max_length`` tokens, from the first on.

    Raises:
        ValueError: ``batches`` is less than 1.
    """

    def __init__(self, text: PlainText, batches: int = 8) -> None:
        if batches < 1:
            raise ValueError(f"Forgetting.batches must be at least 1, got {batches}.")
        self.text = text
        self.batches = batches
        self._measured: list[dict[str, Any]] = []

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Check the adapter and read the text."""
        if stage not in ("fit", "validate"):
            return
        check_base_is_kept(pl_module.adapter)
        self.text.check()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # which Lightning does not declare
        rows = (data.batch_size, data.max_length, data.packing)
        self._measured = text_batches(self.text, pl_module.tokenizer, self.batches, *rows)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure before the first step."""
        if trainer.global_step == 0:
            log_now(trainer, self._measure(trainer, pl_module))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure at a validation. The sanity check is skipped."""
        if not trainer.sanity_checking:
            pl_module.log_dict(self._measure(trainer, pl_module), sync_dist=True)

    def _measure(self, trainer: Trainer, pl_module: Any) -> dict[str, float]:
        context = trainer.precision_plugin.forward_context()
        if pl_module.adapter_dtype == "float32":
            context = adapter_autocast(trainer.precision, pl_module.device.type)
        with context:
            values = measure(pl_module.model, self._measured)
        return {
            "forgetting/loss": values.loss,
            "forgetting/perplexity": math.exp(values.loss),
            "forgetting/loss_increase": values.loss - values.base_loss,
            "forgetting/kl": values.kl,
        }
