"""Which runs of a study are trained together in one process: those that agree in all but a few settings.

Files are compared by name. Whether the method can be stacked is for the process to say (``cera.training.together``).
"""

from collections.abc import Sequence

from cera.studies.base_measurement import BASE_VALIDATION
from cera.studies.definition import StudyRun

ADAPTER = "model.adapter.init_args."

MAY_DIFFER = {
    *("model.learning_rate", "seed_everything", BASE_VALIDATION),
    *(ADAPTER + name for name in ("scaling", "alpha", "lora_alpha", "use_rslora", "dropout", "lora_dropout")),
}
"""Settings in which runs that are trained together may differ."""

DIFFERENCES = "rate, seed, scale and dropout"
"""``MAY_DIFFER`` in words."""


def companions(run: StudyRun, others: Sequence[StudyRun]) -> list[StudyRun]:
    """Return those of the other runs that can be trained together with a run, in their order."""
    return [other for other in others if _kept(other) == _kept(run)]


def _kept(run: StudyRun) -> tuple[tuple[str, ...], dict[str, object]]:
    """Return the files and settings that must agree."""
    return run.configs, {key: value for key, value in run.settings.items() if key not in MAY_DIFFER}
