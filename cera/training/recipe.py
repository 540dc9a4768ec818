"""The training recipe: AdamW, linear warm-up, cosine to zero (paper App. A) or a constant rate, and seeded dropout."""

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

RECIPE = ("learning_rate", "weight_decay", "betas", "warmup", "schedule", "loss_mean")
"""The settings of ``CausalLM`` that must agree when a run is resumed."""

Schedule = Literal["cosine", "constant"]
"""What the learning rate does after the warm-up."""


def check_recipe(
    learning_rate: float, weight_decay: float, warmup: float, betas: tuple[float, float] = (0.9, 0.999)
) -> None:
    """Raise ``ValueError`` if a hyperparameter is out of its range; the message names it."""
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"model.learning_rate must be a positive number, got {learning_rate}.")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"model.weight_decay must be zero or more, got {weight_decay}.")
    if not 0 <= warmup <= 1:
        raise ValueError(f"model.warmup is a share of the steps, in [0, 1], got {warmup}.")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"model.betas must be two numbers in [0, 1), got {list(betas)}.")


def adamw(
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    fused: bool,
) -> AdamW:
    """Return AdamW with weight decay on matrices; vectors (norms, biases) never decay."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas, fused=fused)


def schedule_with_warmup(optimizer: AdamW, schedule: Schedule, warmup: float, steps: int) -> LambdaLR:
    """Return a schedule that rises linearly over the share ``warmup`` of the steps.

    Then it falls to zero with a cosine, or stays as it is.
    """
    rising = math.ceil(warmup * steps)
    if schedule == "constant":
        return get_constant_schedule_with_warmup(optimizer, rising)
    return get_cosine_schedule_with_warmup(optimizer, rising, steps)


def seed_dropout(seed: int, rank: int, step: int, micro_batch: int) -> None:
    """Seed torch's generator for one micro-batch.

    Other users of random numbers (callbacks, validation, loaders) thus do not change a run, and a resumed run
    continues exactly without a saved generator state.
    """
    sequence = np.random.SeedSequence((seed, rank, step, micro_batch))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
