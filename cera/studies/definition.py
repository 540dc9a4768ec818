"""What a study is: its file, and the runs that the file stands for.

    definition = read_definition(Path("configs/studies/smol_lr.yaml"))
    for run in definition.runs:
        print(run.name, run.settings)

A file that is read twice gives the same runs with the same names in the same order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from cera.foreign_files import one_line, require_file
from cera.foreign_yaml import load_yaml
from cera.runs.names import check_name
from cera.studies.axes import (
    Axis,
    AxisValue,
    StudyError,
    as_options,
    check_settings,
    config_file,
    mapping,
    only_keys,
    parse_axes,
)
from cera.studies.base_measurement import BASE_VALIDATION, BaseIdentity
from cera.studies.early_stopping import Resources, StopEarly, parse_resources, parse_stop_early
from cera.studies.measures import Measure, build_measures
from cera.studies.preparation import parse_prepare

FIELDS = {"name", "base", "settings", "axes", "measure", "select", "report", "resources", "stop_early", "prepare"}
"""The fields of a study's file."""

REPLICATES = "seed"
"""The axis whose values are replicates of one setting."""

MOST_RUNS = 10_000
"""Maximum number of runs of a study."""


@dataclass(frozen=True)
class Selection:
    """How a value of an axis is chosen for each method.

    Attributes:
        axis: The axis, such as ``learning_rate``.
        metric: The value that decides; it should be of other rows than those that are reported.
        goal: Whether the lowest or the highest value is best.
        search_seeds: Labels of the seeds that are run at all values, and decide; others are run at the chosen value
            only. All seeds if empty.
    """

    axis: str
    metric: str = "perplexity"
    goal: Literal["min", "max"] = "min"
    search_seeds: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportOptions:
    """What the report shows.

    Attributes:
        metrics: Values to table, in this order; all if empty.
        reference: The method that the others are compared with.
        paper: The paper's numbers by metric, then by method; they are labelled as the paper's.
        source: Where in the paper they stand.
    """

    metrics: tuple[str, ...] = ()
    reference: str | None = None
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        name: Name of its run directory, such as ``cera-lr3e-4-seed0``.
        method: The labels on all axes but the selected one and that of the replicates.
        labels: Label by axis.
        numbers: Value by axis, of axes whose values are numbers.
        configs: Configuration files that it includes, in this order.
        settings: Values by dotted key, which override the files'.
    """

    name: str
    method: str
    labels: Mapping[str, str]
    numbers: Mapping[str, float]
    configs: tuple[str, ...]
    settings: Mapping[str, Any]

    def arguments(self) -> list[str]:
        """Return the arguments of ``cera train`` for its configuration, without name and directory."""
        files = [f"--config={path}" for path in self.configs]
        return [*files, *as_options(self.settings)]


@dataclass(frozen=True)
class Definition:
    """A study as its file defines it.

    Attributes:
        name: Name of the study, and of the directory of its runs.
        axes: What the runs differ in.
        runs: All combinations of the axes' values, the last axis fastest.
        measures: What is measured of each run after its training.
        selection: How each method's value of an axis is chosen; ``None`` if nothing is.
        report: What the report shows.
        resources: What Ray reserves for a run.
        stop_early: When Ray stops a run before its end; ``None`` if it does not.
        prepare: Commands of ``cera`` that are run before the runs.
        reuse: Whether runs of other studies with the same settings are copied; not of the file (``Study.reusing``).
    """

    name: str
    axes: tuple[Axis, ...]
    runs: tuple[StudyRun, ...]
    measures: tuple[Measure, ...]
    selection: Selection | None
    report: ReportOptions
    resources: Resources
    stop_early: StopEarly | None
    prepare: tuple[str, ...]
    reuse: bool = False

    @property
    def number_of_runs(self) -> int:
        """Number of runs that the study comes to: after a search, each other seed of a method is run at one value."""
        search_seeds = () if self.selection is None else self.selection.search_seeds
        if not search_seeds:
            return len(self.runs)
        others = {(run.method, seed) for run in self.runs if (seed := run.labels[REPLICATES]) not in search_seeds}
        return sum(run.labels[REPLICATES] in search_seeds for run in self.runs) + len(others)


def read_definition(path: Path) -> Definition:
    """Read a study's file.

    Raises:
        StudyError: The file is missing or wrong; the message names the field, its value and what would be right.
    """
    try:
        return parse_definition(_content(path), path.parent)
    except StudyError as error:
        raise StudyError(f"{path}: {error}") from error


def _content(path: Path, extending: tuple[Path, ...] = ()) -> Any:
    """Return what a study's file holds, over what the file holds that it ``extends``.

    Of ``axes`` and ``settings`` single entries are replaced, and null ones dropped; of all else whole fields are.
    """
    try:
        content = load_yaml(require_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StudyError(f"{one_line(error)}.") from error
    if not isinstance(content, dict) or "extends" not in content:
        return content
    name, extending = content.pop("extends"), (*extending, path)
    if not isinstance(name, str) or Path(name).name != name:  # the names in both files are relative to one folder
        raise StudyError(f"extends must name a study's file in the same folder, got {name!r}.")
    extended = path.with_name(name)
    if extended in extending:
        raise StudyError(f"extends: {name} extends itself, through {', '.join(file.name for file in extending)}.")
    below = mapping(f"extends: {name}", _content(extended, extending))
    merged = {**below, **content}
    for entries in {"axes", "settings"} & content.keys() & below.keys():
        both = {**mapping(entries, below[entries]), **mapping(entries, content[entries])}
        merged[entries] = {key: value for key, value in both.items() if value is not None}
    return merged


def parse_definition(content: Any, folder: Path) -> Definition:
    """Return the study that a file defines.

    Args:
        content: What the file holds.
        folder: The folder that the names of files are relative to.

    Raises:
        StudyError: A field is missing, unknown or wrong.
    """
    fields = mapping("a study", content)
    only_keys("a study", fields, FIELDS)
    for required in ("name", "base", "axes"):
        if required not in fields:
            raise StudyError(f"a study needs the field {required}.")
    name = fields["name"]
    try:
        check_name(str(name), "name")
    except ValueError as error:
        raise StudyError(str(error)) from error
    written = fields["base"] if isinstance(fields["base"], list) else [fields["base"]]
    base = tuple(config_file("base", file, folder) for file in written)
    if not base:
        raise StudyError("base must name at least one configuration file, got [].")
    settings = check_settings("settings", mapping("settings", fields["settings"])) if "settings" in fields else {}
    axes = parse_axes(fields["axes"], folder)
    selection = _selection(fields.get("select"), axes)
    runs = _expand(axes, base, settings, selection)
    measures = build_measures(fields.get("measure", ["perplexity"]), folder)
    return Definition(
        str(name),
        axes,
        runs,
        measures,
        selection,
        _report(fields.get("report"), runs),
        parse_resources(fields.get("resources")),
        parse_stop_early(fields.get("stop_early")),
        parse_prepare(fields.get("prepare")),
    )


def _selection(content: Any, axes: Sequence[Axis]) -> Selection | None:
    if content is None:
        return None
    fields = mapping("select", content)
    only_keys("select", fields, {"axis", "metric", "goal", "search_seeds"})
    names = [axis.name for axis in axes if axis.name != REPLICATES]
    if fields.get("axis") not in names:
        raise StudyError(f"select.axis must be an axis ({', '.join(names)}), got {fields.get('axis')!r}.")
    if fields.get("goal", "min") not in ("min", "max"):
        raise StudyError(f"select.goal must be min or max, got {fields['goal']!r}.")
    if not isinstance(fields.get("metric", ""), str):
        raise StudyError(f"select.metric must be the name of a value, got {fields['metric']!r}.")
    search_seeds = _search_seeds(fields.get("search_seeds", []), axes)
    return Selection(**{**fields, "search_seeds": search_seeds})


def _search_seeds(written: Any, axes: Sequence[Axis]) -> tuple[str, ...]:
    """Return the labels of seeds that a file names by their values."""
    values = [value for axis in axes if axis.name == REPLICATES for group in axis.values.values() for value in group]
    labels = {value.number: value.label for value in values} | {value.label: value.label for value in values}
    if not isinstance(written, list) or not all(isinstance(each, int | str) and each in labels for each in written):
        known = f"values of the axis {REPLICATES}" if values else f"empty without an axis {REPLICATES}"
        raise StudyError(f"select.search_seeds must be a list of {known}, got {written!r}.")
    return tuple(dict.fromkeys(labels[seed] for seed in written))


def _report(content: Any, runs: Sequence[StudyRun]) -> ReportOptions:
    if content is None:
        return ReportOptions()
    fields = mapping("report", content)
    only_keys("report", fields, {"metrics", "reference", "paper", "source"})
    methods = list(dict.fromkeys(run.method for run in runs))
    metrics = fields.get("metrics", [])
    if not isinstance(metrics, list) or not all(isinstance(metric, str) for metric in metrics):
        raise StudyError(f"report.metrics must be a list of names, got {metrics!r}.")
    if fields.get("reference") not in (None, *methods):
        raise StudyError(f"report.reference must be a method ({', '.join(methods)}), got {fields['reference']!r}.")
    paper = _paper(fields["paper"], methods) if "paper" in fields else {}
    return ReportOptions(tuple(metrics), fields.get("reference"), paper, str(fields.get("source", "")))


def _paper(content: Any, methods: Sequence[str]) -> dict[str, Mapping[str, float]]:
    paper = {}
    for metric, numbers in mapping("report.paper", content).items():
        paper[metric] = mapping(f"report.paper.{metric}", numbers)
        for method, number in paper[metric].items():
            if method not in methods or not isinstance(number, int | float):
                known = ", ".join(methods)
                raise StudyError(
                    f"report.paper.{metric} must map methods ({known}) to numbers, got {method}: {number!r}."
                )
    return paper


# Expansion


def _expand(
    axes: Sequence[Axis], base: tuple[str, ...], settings: Mapping[str, Any], selection: Selection | None
) -> tuple[StudyRun, ...]:
    """Return all combinations of the axes' values as runs."""
    combinations: list[dict[str, AxisValue]] = [{}]
    for axis in axes:
        combinations = [
            {**combination, axis.name: value}
            for combination in combinations
            for value in axis.values_for({name: chosen.label for name, chosen in combination.items()})
        ]
        if len(combinations) > MOST_RUNS:
            raise StudyError(f"axes stand for more than {MOST_RUNS} runs.")
    runs: dict[str, StudyRun] = {}
    identity, measured = BaseIdentity(), set[str]()
    not_of_method = {REPLICATES, *([] if selection is None else [selection.axis])}
    search_seeds = () if selection is None else selection.search_seeds
    if search_seeds:  # first, so that they measure the base
        combinations.sort(key=lambda combination: combination[REPLICATES].label not in search_seeds)
    for combination in combinations:
        labels = {name: value.label for name, value in combination.items()}
        name = "-".join(labels.values())
        method = "-".join(label for axis, label in labels.items() if axis not in not_of_method) or "all"
        merged = dict(settings)
        for value in combination.values():
            merged |= value.settings
        configs = (*base, *(file for value in combination.values() for file in value.configs))
        begins_with = identity(configs, merged)
        merged.setdefault(BASE_VALIDATION, 0 if begins_with in measured else -1)
        measured.add(begins_with)
        if name in runs:
            raise StudyError(f"two runs have the name {name}: {dict(runs[name].labels)} and {labels}.")
        _check_run_name(name)
        numbers = {axis: value.number for axis, value in combination.items() if value.number is not None}
        runs[name] = StudyRun(name, method, labels, numbers, configs, merged)
    return tuple(runs.values())


def _check_run_name(name: str) -> None:
    try:
        check_name(name, "the name of a run, the labels of its axes,")
    except ValueError as error:
        raise StudyError(str(error)) from error
