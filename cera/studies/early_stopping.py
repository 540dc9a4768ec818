"""Resources of a run on a cluster, and when a run is stopped before its end: two fields of a study's file.

resources: {cpus: 4, gpus: 1}
stop_early: {grace_steps: 50, reduction: 3}
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cera.foreign_files import FileError, read_json_object
from cera.runs.files import replacing
from cera.studies.axes import StudyError, as_number, mapping, only_keys

STOPPED_EARLY = "stopped_early.json"
"""The file in the directory of a run that was stopped early; without it the run would be resumed."""

METRIC = "val/perplexity"
"""What runs are compared by; the lowest is best."""


@dataclass(frozen=True)
class Resources:
    """What Ray reserves for a run.

    Attributes:
        cpus: Number of cores, which is also the number of threads (``OMP_NUM_THREADS``).
        gpus: Number of GPUs; a run sees these alone.
    """

    cpus: float = 1
    gpus: float = 0


@dataclass(frozen=True)
class StopEarly:
    """Asynchronous successive halving, ASHA (Li et al. 2020, https://arxiv.org/abs/1810.05934).

    At ``grace_steps`` and each multiple of it by a power of ``reduction``, a run goes on if it is among the best
    ``1 / reduction`` of those that came so far, by their validation perplexity.

    Attributes:
        grace_steps: Number of optimizer steps before a run may be stopped.
        reduction: See above; greater than 1.
    """

    grace_steps: int
    reduction: float = 3


@dataclass(frozen=True)
class StoppedEarly:
    """What a run was stopped early by.

    Attributes:
        step: Number of optimizer steps done.
        perplexity: The validation perplexity at this step.
    """

    step: int
    perplexity: float

    @classmethod
    def read(cls, run_dir: Path) -> "StoppedEarly | None":
        """Return what stopped the run in ``run_dir``; ``None`` if it was not stopped early.

        Raises:
            FileError: The file is broken.
        """
        path = run_dir / STOPPED_EARLY
        if not path.exists():
            return None
        try:
            return cls(**read_json_object(path))
        except TypeError as error:
            raise FileError(f"{path} does not say why the run was stopped early.") from error

    def save(self, run_dir: Path) -> None:
        """Write the file."""
        with replacing(run_dir / STOPPED_EARLY) as file:
            file.write_text(json.dumps(asdict(self)) + "\n")

    def __str__(self) -> str:
        return f"{METRIC} was {self.perplexity:.4g} at step {self.step}"


def parse_resources(content: Any) -> Resources:
    """Return the field ``resources`` of a study's file.

    Raises:
        StudyError: A key is unknown, or a value is no number in its range.
    """
    if content is None:
        return Resources()
    written = mapping("resources", content)
    only_keys("resources", written, {field.name for field in fields(Resources)})
    for name, value in written.items():
        number = None if isinstance(value, str) else as_number(value)
        if number is None or number < 0 or (name == "cpus" and number == 0):
            right = "a positive number" if name == "cpus" else "a number of at least 0"
            raise StudyError(f"resources.{name} must be {right}, got {value!r}.")
    return Resources(**written)


def parse_stop_early(content: Any) -> StopEarly | None:
    """Return the field ``stop_early`` of a study's file.

    Raises:
        StudyError: A key is missing or unknown, or a value is not in its range.
    """
    if content is None:
        return None
    written: Mapping[str, Any] = mapping("stop_early", content)
    only_keys("stop_early", written, {field.name for field in fields(StopEarly)})
    steps, reduction = written.get("grace_steps"), written.get("reduction", 3)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise StudyError(f"stop_early.grace_steps must be a positive integer, got {steps!r}.")
    if isinstance(reduction, str) or (as_number(reduction) or 0) <= 1:
        raise StudyError(f"stop_early.reduction must be a number greater than 1, got {reduction!r}.")
    return StopEarly(**written)
