"""Saves the adapter in PEFT's format to ``adapter/`` of the run directory, along with each checkpoint.

What is written and how is in ``write_adapter``.
"""

import json
import os
import shutil
from collections.abc import Mapping
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

RESULTS = {
    "val/perplexity": "perplexity of held-out answers",
    "forgetting/perplexity": "perplexity of general text",
    "forgetting/kl": "KL from the base on general text, in nats per token",
}
"""Column of ``metrics.csv`` -> its name in a model card."""


class AdapterFile(Callback):
    """Writes the adapter whenever a checkpoint is written, and at the end of training; see ``write_adapter``.

    Args:
        run_dir: The run directory.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / "adapter"

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the adapter. Lightning calls this on every rank when it assembles a checkpoint."""
        write_adapter(trainer, pl_module, self.path)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the trained adapter; called on every rank."""
        write_adapter(trainer, pl_module, self.path)


def write_adapter(trainer: Trainer, pl_module: Any, path: Path, further: Mapping[str, str] | None = None) -> None:
    """Write the adapter of a run; every rank must call this.

    The directory loads with ``peft.PeftModel.from_pretrained``, and holds a model card and the tokenizer with its chat
    template beside the weights. A new adapter is written beside the old one and then renamed, so the directory never
    holds half an adapter; between the two renames it is absent for a moment.

    Args:
        trainer: The run's trainer.
        pl_module: The module that it trains.
        path: The directory, in that of the run.
        further: Further files: names and texts.
    """
    prefix = "model."  # the LightningModule's attribute that holds the PeftModel
    trainable = pl_module.trainable()
    weights = None  # PEFT collects them from the model, unless ZeRO-3 has partitioned them
    if any(hasattr(p, "ds_id") for p in trainable.values()):
        weights = {k.removeprefix(prefix): v for k, v in gather(trainable).items()}
    if not trainer.is_global_zero:
        return
    unfinished, old = path.with_name(f".{path.name}.unfinished"), path.with_name(f".{path.name}.old")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    pl_module.model.save_pretrained(unfinished, state_dict=weights, save_embedding_layers=False)
    sort_sets(unfinished, pl_module.model.peft_config["default"])
    _card(trainer, pl_module, path.parent).save(unfinished)
    prepare_template(pl_module.tokenizer)  # so that it has the template which rendered the data
    pl_module.tokenizer.save_pretrained(unfinished)
    for name, text in (further or {}).items():
        (unfinished / name).write_text(text + "\n", encoding="utf-8")
    give_usual_mode(unfinished)
    sync_tree(unfinished)
    if path.exists():
        path.rename(old)
    unfinished.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _card(trainer: Trainer, pl_module: Any, run_dir: Path) -> ModelCard:
    """Return the model card, from the run's settings and ``metrics.csv`` alone: a resumed run has the same."""
    data: ChatData = trainer.datamodule  # type: ignore[attr-defined]  # which Lightning does not declare
    dataset = data.dataset
    on_hub = hub_id(dataset.path) if dataset.data_files is None else None
    results = {
        f"{label}, {'base alone' if step == 0 else f'after {step} steps'}": f"{value:.4f}"
        for column, label in RESULTS.items()
        for step, value in _first_and_last(curve(run_dir / METRICS, column))
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
    drawn = ", drawn with replacement" if data.with_replacement else ""
    clip = trainer.gradient_clip_val
    return {
        **({} if data.template is None else {"text": json.dumps(data.template, ensure_ascii=False)}),
        "loss": _loss(pl_module, data),
        "steps": f"{trainer.global_step} of {pl_module.total_steps}",
        "batch": f"{rows} {kind} tokens{drawn}",
        "optimizer": f"AdamW, betas {betas}, weight decay {pl_module.weight_decay:g}",
        "learning rate": (
            f"{pl_module.learning_rate:g}, {pl_module.schedule}, warm-up over {pl_module.warmup:.0%} of the steps"
        ),
        "gradients": "not clipped" if not clip else f"clipped to {trainer.gradient_clip_algorithm or 'norm'} {clip:g}",
        "precision": trainer.precision,
        "quantization of the base": pl_module.quantization or "none",
        "seed": os.environ.get("PL_GLOBAL_SEED", "none"),
    }


def _loss(pl_module: Any, data: ChatData) -> str:
    parts = ["over the answers" if data.loss_on == "answer" else "over questions and answers"]
    if not data.loss_on_end:
        parts.append("without their ends")
    if pl_module.loss_mean == "micro_batch":
        parts.append("mean of the means of micro-batches")
    return ", ".join(parts)
