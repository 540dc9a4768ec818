"""Settings that earlier versions do not have, and the values that mean what those versions did."""

from collections.abc import Iterable, Mapping
from typing import Any

ADDED = {
    "schedule": "cosine",
    "loss_mean": "step",
    "template": None,
    "loss_on": "answer",
    "loss_on_end": True,
    "with_replacement": False,
    "rows": None,
    "turns": "all",
}
"""Settings of model, data and datasets by name."""

ADDED_TO_CERA = {"init": "kaiming_uniform", "calibration_std": 1.0, "dropout_on": "latent", "recurrent_steps": 0}
"""Settings of ``CeraConfig`` by name."""


def without_added(settings: Iterable[tuple[str, Any]], added: Mapping[str, Any] = ADDED) -> dict[str, Any]:
    """Return names and values without those of ``added`` that are as before, so that earlier runs compare equal."""
    return {name: value for name, value in settings if name not in added or value != added[name]}


def as_before(settings: Any) -> Any:
    """Return a configuration of mappings, lists and values, in which ``without_added`` is applied to each mapping."""
    if isinstance(settings, dict):
        return {name: as_before(value) for name, value in without_added(settings.items()).items()}
    return [as_before(value) for value in settings] if isinstance(settings, list) else settings
