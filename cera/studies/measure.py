"""What a measure of a study is; those that come with the package are in ``cera.studies.measures``."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cera.runs.finished import FinishedRun, RunError
from cera.studies.problem_scores import ProblemScores

CERA = (sys.executable, "-m", "cera")
"""Command that starts ``cera`` in a process of its own."""


class Measure:
    """Something that is measured of a run when its training has ended.

    Attributes:
        files: Names of arguments that are paths of files.
    """

    files: tuple[str, ...] = ()

    def command(self, run_dir: Path) -> list[str] | None:
        """Return the command that measures the run in ``run_dir``.

        ``None`` if its files hold the values already, or if there is nothing to measure of its adapter.
        """
        return None

    def values(self, run: FinishedRun) -> dict[str, float]:
        """Return what was measured by name; empty if it is not measured yet, or there is nothing to measure.

        Raises:
            FileError: A file of the run is broken, or of another measurement than this one.
        """
        raise NotImplementedError

    def problems(self, run: FinishedRun) -> dict[str, ProblemScores]:
        """Return scores by problem, by the name that begins the names of their values: ``NAME`` of ``NAME_pass@1``."""
        return {}


def number(file: Path, content: Mapping[str, Any], key: str) -> float:
    """Return a number of a JSON object, where nan and inf are text.

    Raises:
        RunError: There is none; the message names the file and the key.
    """
    value = content.get(key)
    if value in ("nan", "inf"):  # which are no numbers in JSON
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RunError(f"{file}: {key} must be a number, got {value!r}.")
    return float(value)
