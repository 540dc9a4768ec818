"""Pre-trains a small base model and keeps it beside the converted models of this machine.

Example:
    >>> folder = pretrain(settings)  # which other configurations call pretrained://NAME
"""

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from cera.foreign_files import FileError, read_json_object
from cera.models.backbone import pretrained_folder
from cera.pretraining.corpus import blocks, conversations, train_tokenizer
from cera.pretraining.module import BaseModel
from cera.pretraining.settings import Pretraining
from cera.runs.checkpoint_io import AtomicCheckpointIO
from cera.runs.environment import environment
from cera.runs.files import replacing
from cera.runs.lock import LOCK, DirectoryLock

RECORD = "pretraining.json"
"""The file in a model's directory with its settings, its held-out losses and the machine that made it."""


def pretrain(settings: Pretraining, callbacks: Sequence[Callback] = ()) -> Path:
    """Train the model and return its directory, in transformers' format; return at once if it is there.

    A training that was stopped goes on from its last checkpoint.

    Args:
        settings: The model and its training.
        callbacks: Further callbacks, such as one that shows progress.

    Raises:
        FileError: A model of this name was made, or begun, with other settings.
    """
    folder = pretrained_folder(settings.name)
    unfinished = folder.with_name(f"{settings.name}.unfinished")
    if folder.is_dir():
        _check_settings(folder, settings)
        return folder
    unfinished.mkdir(parents=True, exist_ok=True)
    with DirectoryLock(unfinished):
        if (unfinished / RECORD).exists():
            _check_settings(unfinished, settings)
        _write_record(unfinished, {"settings": as_plain_data(settings)})
        _train(settings, unfinished, callbacks)
    (unfinished / LOCK).unlink()
    unfinished.rename(folder)
    return folder


def as_plain_data(settings: Pretraining) -> dict[str, Any]:
    """Return the settings as JSON data, each data set with its class."""
    content = dataclasses.asdict(settings)
    content["corpus"] = [{"class": type(part).__name__, **dataclasses.asdict(part)} for part in settings.corpus]
    return json.loads(json.dumps(content))


def _check_settings(folder: Path, settings: Pretraining) -> None:
    before, now = read_json_object(folder / RECORD)["settings"], as_plain_data(settings)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise FileError(
                f"{folder} was made with pretraining.{name}={before.get(name)}, and the configuration has "
                f"{now.get(name)}: give the model another name, or remove that directory."
            )


def _write_record(folder: Path, content: dict[str, Any]) -> None:
    with replacing(folder / RECORD) as file:
        file.write_text(json.dumps(content, indent=1) + "\n")


def _train(settings: Pretraining, folder: Path, callbacks: Sequence[Callback]) -> None:
    seed_everything(settings.seed, verbose=False)
    started = time.monotonic()
    texts = conversations(settings.corpus, settings.seed)
    tokenizer = train_tokenizer(texts, settings.vocabulary, settings.shape.positions)
    rows = blocks(texts, tokenizer, settings.block)
    held_out = math.ceil(settings.held_out * len(rows))
    if len(rows) - held_out < settings.batch_size:
        raise FileError(
            f"pretraining.corpus has {len(rows)} rows of {settings.block} tokens, too few for steps of "
            f"{settings.batch_size}: give its data sets larger sizes."
        )
    module = BaseModel(
        settings, rows[held_out:], rows[:held_out], len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id
    )
    checkpoints = ModelCheckpoint(
        folder / "checkpoints", filename="last", every_n_train_steps=settings.checkpoint_every, save_top_k=1,
        enable_version_counter=False,
    )  # fmt: skip
    newest = folder / "checkpoints" / "last.ckpt"
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        precision=settings.precision,  # type: ignore[arg-type]  # whose names Lightning lists
        max_steps=settings.steps,
        val_check_interval=settings.checkpoint_every,
        limit_val_batches=50,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=bool(callbacks),
        callbacks=[checkpoints, *callbacks],
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(module, ckpt_path=str(newest) if newest.exists() else None)
    if trainer.global_step < settings.steps:
        raise FileError(f"stopped at step {trainer.global_step}; the same command goes on from the last checkpoint.")
    trainer.validate(module, verbose=False)
    module.model.float().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes private files
    tokenizer.save_pretrained(folder)
    record = {
        "settings": as_plain_data(settings),
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        "corpus_tokens": rows.numel(),
        "trained_tokens": settings.steps * settings.batch_size * settings.block,
        "held_out_loss": module.losses,
        "seconds_of_last_process": round(time.monotonic() - started, 1),
        "environment": environment(),
    }
    _write_record(folder, record)
    shutil.rmtree(folder / "checkpoints")
