"""A short fit of the tiny Llama in this process."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from peft import PeftConfig

import cera
from cera.data import ChatData, ReasoningGymWordProblems
from cera.runs.loggers import MetricsCSV
from cera.training.module import CausalLM


def fit(
    base: str,
    folder: Path,
    callbacks: list[Callback],
    ckpt_path: Path | None = None,
    adapter: PeftConfig | None = None,
    learning_rate: float = 0.01,
    warmup: float = 0.03,
    gradient_checkpointing: bool = False,
    compile_layers: bool = False,
    batch_size: int = 2,
    **options: Any,
) -> tuple[CausalLM, ChatData, Trainer]:
    """4 steps with 2 validations on packs of word problems, and a metrics.csv in ``folder``.

    The adapter is CeRA r=8, with dropout, if none is given; ``options`` are the trainer's.
    """
    torch.manual_seed(0)
    adapter = adapter or cera.CeraConfig(r=8, dropout=0.1)
    fit_options = {
        "warmup": warmup,
        "gradient_checkpointing": gradient_checkpointing,
        "compile_layers": compile_layers,
    }
    module = CausalLM(base, adapter, learning_rate, **fit_options)
    data = ChatData(ReasoningGymWordProblems(size=60), base, validation_rows=8, max_length=192, batch_size=batch_size)
    settings = {
        "max_steps": 4,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "logger": MetricsCSV(folder),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    } | options
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=callbacks, default_root_dir=folder, **settings)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=False)
    return module, data, trainer
