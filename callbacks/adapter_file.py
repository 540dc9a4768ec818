"""Saves the adapter in PEFT's format to ``adapter/`` of the run directory, along with each checkpoint."""

import os
import shutil
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cera.data import ChatData
from cera.data.template import prepare_template
from cera.runs.adapter_settings import sort_sets
from cera.runs.base_source import hub_id
from cera.runs.files import give_usual_mode, sync_tree
from cera.runs.finished import curve
from cera.runs.journal import METRICS
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
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / "adapter"

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
        sort_sets(unfinished, pl_module.model.peft_config["default"])
        self._card(trainer, pl_module).save(unfinished)
        prepare_template(pl_module.tokenizer)  # so that it has the template which rendered the data
        pl_module.tokenizer.save_pretrained(unfinished)
        give_usual_mode(unfinished)
        sync_tree(unfinished)
        if self.path.exists():
            self.path.rename(old)
        unfinished.rename(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def _card(self, trainer: Trainer, pl_module: Any) -> ModelCard:
        """Return the model card, from the run's settings and ``metrics.csv`` alone: a resumed run has the same."""
        data: ChatData = trainer.datamodule  # type: ignore[attr-defined]  # which Lightning does not declare
        dataset = data.dataset
        on_hub = hub_id(dataset.path) if dataset.data_files is None else None
        results = {
            f"perplexity of held-out answers, {'base alone' if step == 0 else f'after {step} steps'}": f"{value:.4f}"
            for step, value in _first_and_last(curve(self.run_dir / METRICS, "val/perplexity"))
        }
        datasets = () if on_hub is None else (on_hub,)
        recipe = {"data": " ".join((type(dataset).__name__, *datasets)), **_recipe(trainer, pl_module, data)}
        return ModelCard(pl_module.model.peft_config["default"], pl_module.base, recipe, results, datasets)


def _first_and_last(validations: dict[int, float]) -> list[tuple[int, float]]:
    """Return the base's validation, which is at step 0, and the last one, as far as they are there."""
    return [(step, validations[step]) for step in sorted({0, max(validations, default=0)} & validations.keys())]


def _recipe(trainer: Trainer, pl_module: Any, data: ChatData) -> dict[str, str]:
    """Return how the adapter is trained, by the names that a model card has for it."""
    rows = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    betas = ", ".join(f"{beta:g}" for beta in pl_module.betas)
    kind = f"packed rows of {data.max_length}" if data.packing else f"conversations of at most {data.max_length}"
    clip = trainer.gradient_clip_val
    return {
        "loss": "over the answers",
        "steps": f"{trainer.global_step} of {pl_module.total_steps}",
        "batch": f"{rows} {kind} tokens",
        "optimizer": f"AdamW, betas {betas}, weight decay {pl_module.weight_decay:g}",
        "learning rate": f"{pl_module.learning_rate:g}, cosine, warm-up over {pl_module.warmup:.0%} of the steps",
        "gradients": "not clipped" if not clip else f"clipped to {trainer.gradient_clip_algorithm or 'norm'} {clip:g}",
        "precision": trainer.precision,
        "quantization of the base": pl_module.quantization or "none",
        "seed": os.environ.get("PL_GLOBAL_SEED", "none"),
    }
