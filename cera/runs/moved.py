"""Class paths that earlier versions used, so that their configuration files and commands still work.

Example:
    >>> current_class_path("callbacks.SpectralTracker")
    'cera.callbacks.SpectralTracker'
"""

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

MOVED = {
    "cera.checkpoint.AtomicCheckpointIO": "cera.runs.checkpoint_io.AtomicCheckpointIO",
    "cera.data.GSM8K": "cera.data.GSM8KSolutions",
    "cera.data.GSMSymbolic": "cera.data.ReasoningGymWordProblems",
    "cera.loggers.MetricsCSV": "cera.runs.loggers.MetricsCSV",
    "cera.strategies.DeepSpeed": "cera.training.DeepSpeed",
    "cera.training.deepspeed.DeepSpeed": "cera.training.DeepSpeed",
}
"""Earlier class path -> class path today."""

CALLBACK = re.compile(r"callbacks\.(\w+\.)*[A-Z]\w*")
"""Class path of a callback before the callbacks moved into the package."""

CLASS_PATH = re.compile(r"(?<![\w./])(?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*(?![\w./])")


def current_class_path(path: str) -> str:
    """Return where a class lies today; a path that has not moved is returned as it is."""
    if path in MOVED:
        return MOVED[path]
    if CALLBACK.fullmatch(path) and not _user_has_callbacks():
        return f"cera.{path}"
    return path


def current_class_paths(config: Any) -> Any:
    """Return a copy of a configuration (mappings, lists, values) in which every moved class path is replaced."""
    if isinstance(config, dict):
        return {key: current_class_paths(value) for key, value in config.items()}
    if isinstance(config, list):
        return [current_class_paths(value) for value in config]
    if isinstance(config, str) and CLASS_PATH.fullmatch(config):
        return current_class_path(config)
    return config


def current_argument(argument: str) -> str:
    """Return a command-line argument in which moved class paths are replaced, also within an inline list or mapping.

    The name of an option is left alone: in ``--trainer.strategy=cera.strategies.DeepSpeed`` only the value changes.
    """
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return option + equals + CLASS_PATH.sub(lambda match: current_class_path(match[0]), value)


@cache
def _user_has_callbacks() -> bool:
    """Whether ``callbacks`` is a package of the user's own, whose class paths are not to be changed."""
    spec = importlib.util.find_spec("callbacks")
    if spec is None:
        return False
    folder = Path(__file__).parent.parent / "callbacks"
    return folder.resolve() not in [Path(place).resolve() for place in spec.submodule_search_locations or ()]
