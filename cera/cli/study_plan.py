"""What the runs of a study will take: configurations are parsed, and adapters are counted without weights."""

import logging
import os
import warnings
from collections.abc import Iterable
from typing import Any

from cera.cli.study_tables import PlannedRun
from cera.cli.training_run import BaseMissing, build_run, parse_run
from cera.memory.estimate import estimate
from cera.studies.base_measurement import BASE_VALIDATION
from cera.studies.definition import StudyRun

SAME_SIZE = ("model.learning_rate", "seed_everything", BASE_VALIDATION)
"""Settings on which neither the number of parameters nor the memory depends."""


def plan_runs(
    runs: Iterable[StudyRun], base: str | None = None, memory: bool = False
) -> tuple[list[PlannedRun], str | None]:
    """Return the runs with their sizes, and what this machine lacks if they cannot be counted.

    Args:
        runs: Runs of a study.
        base: Model on which parameters are counted in place of the configured one.
        memory: Whether the memory is estimated, which takes seconds for each adapter.

    Raises:
        ValueError: The configuration of a run is invalid; the message names the run and the key.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed is only imported for its options
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # a trainer reports unused GPUs
    sizes: dict[str, tuple[int | None, int | None]] = {}
    parsed: set[str] = set()
    missing: dict[str, str] = {}
    planned = []
    for run in runs:
        first, *others = run.arguments()
        key = repr((run.configs, {key: value for key, value in run.settings.items() if key not in SAME_SIZE}))
        if key not in sizes or not parsed.issuperset(others):  # parsing takes long: each value of a setting once
            try:
                config = parse_run(
                    first.removeprefix("--config="), [*others, *([f"--model.base={base}"] if base else [])]
                )
                if key not in sizes:
                    sizes[key] = _size(config, run.name, memory, missing)
            except ValueError as error:
                raise ValueError(f"{run.name}: {error}") from error
            parsed.update(others)
        planned.append(PlannedRun(run, *sizes[key]))
    return planned, next(iter(missing.values()), None)


def _size(config: Any, name: str, memory: bool, missing: dict[str, str]) -> tuple[int | None, int | None]:
    """Return parameters and memory; both ``None`` if the base is among the ``missing``, to which it may be added."""
    if config.model.base in missing:
        return None, None
    try:
        training = build_run(config, name)
    except BaseMissing as error:
        missing[config.model.base] = str(error)
        return None, None
    if not memory:
        return training.module.check(), None
    rows = [row for row in estimate(training) if row.stage == training.stage]
    return training.module.check(), rows[0].memory.total
