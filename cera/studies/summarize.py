"""Reads the run directories of a study: how far each run is, and all that its report needs.

Where a few seeds search the best value of an axis for the others, this decides which runs are wanted.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from cera.foreign_files import read_json_object
from cera.runs.finished import FinishedRun
from cera.studies.definition import REPLICATES, Definition, StudyRun
from cera.studies.measures import Measure
from cera.studies.problem_scores import ProblemScores
from cera.studies.state import ENDED, RunState, State, read_state
from cera.studies.summary import RunSummary, Summary

DIGITS = 10
"""Significant digits of the values: rounding of the last bit does not change a report."""


def summarize_study(definition: Definition, folder: Path) -> Summary:
    """Read the run directories of a study, without those that a search of the best value does not want.

    Args:
        definition: The study.
        folder: Its directory.

    Raises:
        StudyError: A run was started with other settings than the study has now.
    """
    whole = _summarize_all(definition, folder)
    left_out = unwanted_runs(whole)
    return replace(whole, runs=tuple(run for run in whole.runs if run.name not in left_out))


def read_states(definition: Definition, folder: Path) -> list[RunState]:
    """Return how far each run of a study is, and which ones a search of the best value does not want.

    Args:
        definition: The study.
        folder: Its directory.

    Raises:
        StudyError: A run was started with other settings than the study has now.
    """
    states = [read_state(folder, run, definition.measures) for run in definition.runs]
    if definition.selection is None or not definition.selection.search_seeds:
        return states
    unwanted = unwanted_runs(_summarize_all(definition, folder))
    return [replace(state, state=unwanted.get(state.run.name, state.state)) for state in states]


def unwanted_runs(summary: Summary) -> dict[str, State]:
    """Return the runs that are not to be started, with their state: ``undecided`` or ``not needed``.

    With ``search_seeds`` these seeds are run at all values. When all such runs of a method have ended, its other seeds
    are run at the best value and at no other; until then it is undecided at which.
    """
    selection, unwanted = summary.selection, dict[str, State]()
    if selection is None or not selection.search_seeds:
        return unwanted
    for method in summary.methods:
        runs = [run for run in summary.runs if run.method == method]
        search = [run for run in runs if run.labels[REPLICATES] in selection.search_seeds]
        decided = len(search) > 0 and all(run.state in ENDED for run in search)
        best = summary.choice(method).value
        for run in runs:
            if run in search or run.state in (*ENDED, "running"):
                continue
            if not decided:
                unwanted[run.name] = "undecided"
            elif run.labels[selection.axis] != best:
                unwanted[run.name] = "not needed"
    return unwanted


def _summarize_all(definition: Definition, folder: Path) -> Summary:
    runs = tuple(_summarize_run(folder, run, definition.measures) for run in definition.runs)
    axes = tuple(axis.name for axis in definition.axes)
    return Summary(definition.name, axes, definition.selection, definition.report, runs)


def _summarize_run(folder: Path, run: StudyRun, measures: tuple[Measure, ...]) -> RunSummary:
    state = read_state(folder, run, measures)
    values: dict[str, float] = {}
    problems: dict[str, ProblemScores] = {}
    parameters, base = None, None
    if state.state in ENDED:
        finished_run = FinishedRun.read(folder / run.name)
        for measure in measures if state.state == "finished" else ():
            values |= measure.values(finished_run)
            problems |= measure.problems(finished_run)
        base = finished_run.curve("val/perplexity").get(0)
        environment = finished_run.path / "environment.json"
        recorded: Any = read_json_object(environment).get("trainable_parameters") if environment.exists() else None
        parameters = recorded if isinstance(recorded, int) else None
    rounded = {name: number for name, value in values.items() if (number := _rounded(value)) is not None}
    return RunSummary(
        run.name,
        run.method,
        dict(run.labels),
        dict(run.numbers),
        state.state,
        state.reason,
        parameters,
        rounded,
        _rounded(base),
        problems,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")
