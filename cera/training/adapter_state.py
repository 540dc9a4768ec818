"""What a checkpoint holds of the trained module: the adapter's weights and the identity of the run.

A checkpoint of another base, adapter or recipe is refused with the reason, because its weights and its optimizer state
would not mean the same in this run.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning import LightningModule
from peft import PeftConfig
from torch import nn

from cera.adapters import BranchModel, with_current_prefix
from cera.runs.checkpoints import CheckpointError, shared_differences


class AdapterModule(LightningModule):
    """A module whose checkpoints hold its trained parameters only; what is frozen is loaded from its own files."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False  # check_checkpoint makes sure that what is there is whole

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name; a checkpoint holds exactly these."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the weights of the trained parameters."""
        names = self.trainable()
        prefix = kwargs.get("prefix", "")
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if k.removeprefix(prefix) in names}


def identity(base: str, adapter: PeftConfig, recipe: dict[str, Any]) -> str:
    """Return base, adapter and recipe as sorted JSON: the settings that must agree before a checkpoint is loaded.

    Args:
        base: Name of the base model; an existing path is made absolute.
        adapter: PEFT configuration as the run applies it.
        recipe: Hyperparameters by name.
    """
    settings = {k: sorted(v) if isinstance(v, set) else v for k, v in adapter.to_dict().items()}
    del settings["peft_version"]
    resolved = str(Path(base).resolve()) if Path(base).exists() else base
    return json.dumps({**settings, **recipe, "base": resolved}, sort_keys=True, default=str)


def rename_weights(checkpoint: dict[str, Any], tuner: object) -> None:
    """Give the weights of a checkpoint of an earlier version the names that they have today.

    Args:
        checkpoint: As Lightning loads it; its ``state_dict`` is replaced.
        tuner: The PEFT tuner that holds the adapter.
    """
    if isinstance(tuner, BranchModel) and "state_dict" in checkpoint:
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {with_current_prefix(name, tuner.prefix): w for name, w in weights.items()}


def check_checkpoint(checkpoint: dict[str, Any], expected: str, names: Collection[str]) -> None:
    """Check that a checkpoint belongs to this run and holds the whole adapter.

    Args:
        checkpoint: As Lightning loads it. Under DeepSpeed it has no ``state_dict``: DeepSpeed keeps the weights in
            files of its own, and checks them.
        expected: The ``identity`` of this run. An earlier version saved less, and a command that only measures expects
            less: what both have must agree.
        names: The names of the adapter's weights.

    Raises:
        CheckpointError: The checkpoint is of another run, or lacks weights.
    """
    if differing := shared_differences(checkpoint["cera"]["identity"], expected):
        raise CheckpointError(f"the checkpoint is of another run ({'; '.join(differing)}).")
    weights = checkpoint.get("state_dict")
    if weights is not None and weights.keys() != set(names):
        missing = sorted(set(names) - weights.keys())
        raise CheckpointError(f"the checkpoint lacks {len(missing)} of the adapter's weights, such as {missing[:1]}.")
