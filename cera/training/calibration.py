"""Calibrates an adapter with ``init="calibrated"`` on the first training batches; see ``cera.adapters.calibrate``."""

from itertools import islice
from typing import Any

from lightning import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_info
from peft import PeftConfig

from cera.adapters import CeraConfig, calibrate

BATCHES = 4
"""Number of micro-batches of each rank that an adapter is calibrated on."""


def needs_calibration(adapter: PeftConfig) -> bool:
    """Return whether ``adapter`` is calibrated before its training."""
    return isinstance(adapter, CeraConfig) and adapter.init == "calibrated"


def check_calibration(adapter: PeftConfig, strategy: Any) -> None:
    """Raise ``ValueError`` if ``adapter`` is to be calibrated, and the strategy partitions the base that must run."""
    if needs_calibration(adapter) and isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3:
        raise ValueError("model.adapter.init=calibrated: ZeRO-3 partitions the base before training; use stage 2.")


def calibrate_before_training(model: Any, trainer: Trainer) -> None:
    """Calibrate a new adapter if its configuration asks for it, on batches that are trained on all the same.

    This happens before the strategy takes the model, since DeepSpeed copies the weights that it trains, and before a
    checkpoint is read, which replaces them.

    Args:
        model: The adapted model. It is moved to the trainer's device, where the strategy would move it next.
        trainer: A trainer that fits, with its data module set up.

    Raises:
        ValueError: The strategy is ZeRO-3, the trainer has no data module, or the adapter cannot be calibrated.
    """
    adapter = model.peft_config["default"]
    if not needs_calibration(adapter):
        return
    check_calibration(adapter, trainer.strategy)
    data = getattr(trainer, "datamodule", None)
    if data is None:
        raise ValueError("model.adapter.init=calibrated needs batches before training: give the trainer a data module.")
    model.to(trainer.strategy.root_device)
    with trainer.precision_plugin.forward_context():
        before = calibrate(model, islice(data.train_dataloader(), BATCHES))
    values = sorted(before.values())
    rank_zero_info(
        f"Calibrated W_up of {len(values)} modules on {BATCHES} batches: the root mean square of W_up x was "
        f"{values[0]:.3g} to {values[-1]:.3g}, median {values[len(values) // 2]:.3g}."
    )
