"""Saves the adapter in PEFT's format to ``adapter/`` of the run directory, along with each checkpoint."""

import os
import shutil
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cera.data.chat import FALLBACK_TEMPLATE
from cera.runs.files import sync_tree
from cera.runs.model_card import ModelCard
from cera.training.deepspeed import gather


class AdapterFile(Callback):
    """Writes the adapter whenever a checkpoint is written, and at the end of training.

    The directory loads with ``peft.PeftModel.from_pretrained``, and holds a model card and the tokenizer with its chat
    template beside the weights. A new adapter is written beside the old one and then renamed, so the directory never
    holds half an adapter; between the two renames it is absent for a moment.

    Args:
        run_dir: The run directory.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / "adapter"
        self.validated: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the newest validation, so that the model card of a resumed run has it."""
        return {"validated": self.validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the newest validation."""
        self.validated = state_dict["validated"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the perplexity for the model card."""
        perplexity = trainer.callback_metrics.get("val/perplexity")
        if trainer.state.fn == "fit" and not trainer.sanity_checking and perplexity is not None:
            self.validated = {"step": trainer.global_step, "perplexity": float(perplexity)}

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
        (unfinished / "README.md").write_text(self._card(trainer, pl_module).text())
        tokenizer = pl_module.tokenizer
        if tokenizer.chat_template is None:
            tokenizer.chat_template = FALLBACK_TEMPLATE  # which rendered the data
        tokenizer.save_pretrained(unfinished)
        sync_tree(unfinished)
        if self.path.exists():
            self.path.rename(old)
        unfinished.rename(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def _card(self, trainer: Trainer, pl_module: Any) -> ModelCard:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        dataset = data.dataset
        on_hub = () if dataset.path is None or dataset.data_files is not None else (dataset.path,)
        rows = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
        betas = ", ".join(f"{beta:g}" for beta in pl_module.betas)
        recipe = {
            "data": f"{' '.join((type(dataset).__name__, *on_hub))}, loss over the answers",
            "steps": f"{trainer.global_step} of {pl_module.total_steps}",
            "batch": f"{rows} rows of {data.max_length} tokens",
            "optimizer": f"AdamW, betas {betas}, weight decay {pl_module.weight_decay:g}",
            "learning rate": f"{pl_module.learning_rate:g}, cosine, warm-up over {pl_module.warmup:.0%} of the steps",
            "precision": trainer.precision,
            "quantization of the base": pl_module.quantization or "none",
            "seed": os.environ.get("PL_GLOBAL_SEED", "none"),
        }
        results = {}
        if self.validated:
            what = f"perplexity of held-out answers after {self.validated['step']} steps"
            results[what] = f"{self.validated['perplexity']:.4f}"
        if pl_module.base_perplexity is not None:
            results["perplexity of the base alone"] = f"{pl_module.base_perplexity:.4f}"
        return ModelCard(pl_module.model.peft_config["default"], pl_module.base, recipe, results, on_hub)
