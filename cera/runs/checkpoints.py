"""The checkpoints of a run: ``step=N.ckpt`` files, and whether one belongs to the run that loads it."""

import json
from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint is damaged or of another run; the message says which and why."""


def step_of(checkpoint: str | Path) -> int | None:
    """Return the step in a checkpoint's name, ``step=N.ckpt``, or ``None`` for other names."""
    number = Path(checkpoint).stem.partition("=")[2]
    return int(number) if number.isdigit() else None


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the highest step in ``folder``, or ``None`` if there is no ``step=N.ckpt``."""
    steps = {path: step_of(path) for path in folder.glob("step=*.ckpt")}
    numbered = {step: path for path, step in steps.items() if step is not None}
    return numbered[max(numbered)] if numbered else None


def shared_differences(saved: str, current: str) -> list[str]:
    """Compare two JSON objects as ``differences`` does, but only in the keys that both have."""
    before, now = json.loads(saved), json.loads(current)
    shared = before.keys() & now.keys()
    return differences(*(json.dumps({key: settings[key] for key in shared}) for settings in (before, now)))


def differences(saved: str, current: str) -> list[str]:
    """Compare two JSON objects, such as the settings in a checkpoint and those of the run that loads it.

    Returns:
        One line for each key whose values differ, sorted by key.
    """
    before, now = json.loads(saved), json.loads(current)
    keys = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    return [f"{k}: {before.get(k)} there, {now.get(k)} here" for k in keys]
