"""The LightningModule of pre-training: all weights of a small Llama, the loss over all tokens."""

from typing import Any

from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM

from cera.pretraining.corpus import Steps
from cera.pretraining.settings import Pretraining
from cera.training.recipe import adamw, schedule_with_warmup

BETAS = (0.9, 0.95)
"""AdamW's coefficients, as is usual in pre-training."""


class BaseModel(LightningModule):
    """A Llama that learns from blocks of tokens.

    Args:
        settings: Its shape and training.
        rows: Tokens to train on, shape (rows, block).
        held_out: Tokens to measure on, shape (rows, block).
        vocabulary: Number of tokens of the tokenizer.
        end: Id of the end-of-text token, and
        padding: of the padding token.
    """

    def __init__(
        self, settings: Pretraining, rows: Tensor, held_out: Tensor, vocabulary: int, end: int, padding: int
    ) -> None:
        super().__init__()
        self.settings = settings
        self.rows, self.held_out = rows, held_out
        config = settings.shape.config(vocabulary)
        config.bos_token_id, config.eos_token_id, config.pad_token_id = None, end, padding
        self.model = LlamaForCausalLM(config)
        self.losses: dict[int, float] = {}

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of the training."""
        return self.settings.steps

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the mean loss of a batch of ``Steps``, in nats per token."""
        loss = self.model(input_ids=batch["tokens"], labels=batch["tokens"]).loss
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Add a batch of shape (batch_size, block) to the held-out loss."""
        loss = self.model(input_ids=batch, labels=batch).loss
        self.log("val/loss", loss, batch_size=len(batch), prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Keep the held-out loss of this step, in nats per token."""
        self.losses[self.global_step] = round(float(self.trainer.callback_metrics["val/loss"]), 6)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the held-out losses so far."""
        checkpoint["cera"] = {"losses": self.losses}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the held-out losses."""
        self.losses = checkpoint["cera"]["losses"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with linear warm-up and a cosine to zero."""
        settings = self.settings
        optimizer = adamw(self.model.parameters(), settings.learning_rate, settings.weight_decay, BETAS, fused=False)
        schedule = schedule_with_warmup(optimizer, "cosine", settings.warmup, settings.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        """Return the batches from the current step on."""
        steps = Steps(self.rows, self.settings.batch_size, self.settings.seed, self.trainer.global_step)
        return DataLoader(steps, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """Return the held-out rows in order."""
        return DataLoader(self.held_out.long(), self.settings.batch_size)  # type: ignore[arg-type]  # a tensor is a set
