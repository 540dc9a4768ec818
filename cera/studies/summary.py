"""The summary of a study: all that its report needs, as one small JSON file that can be committed.

summary = Summary.read(Path("results/tunnel_sanity/summary.json"))
summary.choice("lora-r192").value  # its best learning rate, such as "lr1e-3"
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cera.foreign_files import FileError, read_json_object
from cera.runs.files import replacing
from cera.studies.definition import REPLICATES, ReportOptions, Selection
from cera.studies.problem_scores import ProblemScores
from cera.studies.selection import Choice, Results, choose
from cera.studies.state import ENDED

SUMMARY = "summary.json"
"""The file in the directory of a study."""


@dataclass(frozen=True)
class RunSummary:
    """What a report needs of a run.

    Attributes:
        name: Its name.
        method: See ``StudyRun.method``.
        labels: Label by axis.
        numbers: Value by axis, of axes of numbers.
        state: See ``cera.studies.state.State``.
        reason: Why it failed or diverged.
        parameters: Number of trainable parameters, if it is recorded.
        values: What was measured, by name.
        base_perplexity: The base's perplexity on the rows of the validation, if this run measured it.
        problems: Scores by problem of each evaluation, by its name.
    """

    name: str
    method: str
    labels: Mapping[str, str]
    numbers: Mapping[str, float]
    state: str
    reason: str | None
    parameters: int | None
    values: Mapping[str, float]
    base_perplexity: float | None = None
    problems: Mapping[str, ProblemScores] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """The runs of a study and what its file says of their report.

    Attributes:
        study: Name of the study.
        axes: Names of the axes, in order.
        selection: See ``Definition``.
        report: See ``Definition``.
        runs: All runs, in order.
    """

    study: str
    axes: tuple[str, ...]
    selection: Selection | None
    report: ReportOptions
    runs: tuple[RunSummary, ...]

    @property
    def methods(self) -> list[str]:
        """The methods, in the order of their runs."""
        return list(dict.fromkeys(run.method for run in self.runs))

    @property
    def metrics(self) -> list[str]:
        """The values that are reported: those that the study's file names, or all."""
        return list(self.report.metrics) or list(dict.fromkeys(name for run in self.runs for name in run.values))

    def results(self, method: str, metric: str) -> dict[str, Results]:
        """Return a method's values by the label on the selected axis (``""`` without one), then by seed."""
        labels = dict.fromkeys(self._label(run) for run in self.runs if run.method == method)
        return {
            label: {
                seed: run.values.get(metric) if run.state == "finished" else None
                for seed, run in self.runs_by_seed(method, label).items()
            }
            for label in labels
        }

    def runs_by_seed(self, method: str, label: str) -> dict[str, RunSummary]:
        """Return a method's runs with a label on the selected axis (``""`` without one), by seed."""
        runs = [run for run in self.runs if run.method == method and self._label(run) == label]
        return {run.labels.get(REPLICATES, ""): run for run in runs}

    def search_results(self, method: str) -> dict[str, Results]:
        """Return a method's values of the deciding metric by label, of the seeds that decide; without any, all are."""
        if self.selection is None:
            return {}
        results = self.results(method, self.selection.metric)
        seeds = self.selection.search_seeds
        return {label: {s: by[s] for s in by if s in seeds or not seeds} for label, by in results.items()}

    def choice(self, method: str) -> Choice:
        """Return the value of the selected axis at which a method is best; without such an axis all are one value."""
        if self.selection is None:
            return Choice("", None, [])
        results, seeds = self.results(method, self.selection.metric), self.selection.search_seeds
        if seeds:  # one of the other seeds that has not ended yet does not speak against its value
            results = {label: self._ended(method, label, by) for label, by in results.items()}
        return choose(results, self.grid(method), self.selection.goal, seeds)

    def _ended(self, method: str, label: str, results: Results) -> Results:
        assert self.selection is not None
        runs, seeds = self.runs_by_seed(method, label), self.selection.search_seeds
        return {seed: value for seed, value in results.items() if seed in seeds or runs[seed].state in ENDED}

    def _label(self, run: RunSummary) -> str:
        return "" if self.selection is None else run.labels[self.selection.axis]

    def grid(self, method: str) -> dict[str, float]:
        """Return a method's values of the selected axis that are numbers, by label."""
        axis = "" if self.selection is None else self.selection.axis
        runs = [run for run in self.runs if run.method == method and axis in run.numbers]
        return {run.labels[axis]: run.numbers[axis] for run in runs}

    def save(self, path: Path) -> None:
        """Write the summary as JSON with sorted keys."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write_text(json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Summary":
        """Read a summary that ``save`` wrote.

        Raises:
            FileError: The file is missing, or no summary.
        """
        content = read_json_object(path)
        try:
            report = content["report"]
            return cls(
                content["study"],
                tuple(content["axes"]),
                None if content["selection"] is None else _read_selection(content["selection"]),
                ReportOptions(**{**report, "metrics": tuple(report["metrics"])}),
                tuple(_read_run(run) for run in content["runs"]),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise FileError(f"{path} is no summary of a study: {error}.") from error


def _read_selection(content: dict[str, Any]) -> Selection:
    return Selection(**{**content, "search_seeds": tuple(content.get("search_seeds", ()))})


def _read_run(content: dict[str, Any]) -> RunSummary:
    problems = {name: ProblemScores(**scores) for name, scores in content.get("problems", {}).items()}
    return RunSummary(**{**content, "problems": problems})
