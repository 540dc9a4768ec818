"""What a study measures of each run after its training.

A measure of your own is a subclass of ``Measure``, which a study's file names by its class path:

    measure:
      - perplexity
      - spectra: {protocol: authors}
      - mine.Norms: {layers: 4}
"""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from cera.evaluation.degenerate import degenerate_shares
from cera.evaluation.records import Record, read
from cera.foreign_files import read_json_object
from cera.runs.checkpoints import newest_checkpoint
from cera.runs.finished import FinishedRun, RunError
from cera.spectral.aggregate import ALL_LAYERS, summarize
from cera.spectral.convention import PROTOCOLS, Protocol, matrix_name
from cera.spectral.files import Quantity
from cera.spectral.measures import MEASURES
from cera.studies.activation_measures import InterventionsMeasure, LearnedMixMeasure, LinearizationMeasure
from cera.studies.axes import StudyError, as_options, check_settings, config_file, mapping
from cera.studies.measure import CERA, Measure, number
from cera.studies.problem_scores import ProblemScores


class FinalPerplexity(Measure):
    """``perplexity``: that of the last validation of the training, on the rows that it holds out."""

    def values(self, run: FinishedRun) -> dict[str, float]:
        """Return ``perplexity``."""
        curve = run.curve("val/perplexity")
        return {"perplexity": curve[max(curve)]} if curve else {}


class GeneralText(Measure):
    """``general_text``: what the training costs on general text, where ``cera.callbacks.Forgetting`` measures it."""

    def values(self, run: FinishedRun) -> dict[str, float]:
        """Return what it logged at the last validation; nothing of a run without the callback."""
        curves = {name: run.curve(f"forgetting/{name}") for name in ("perplexity", "loss_increase", "kl")}
        return {f"general_text_{name}": curve[max(curve)] for name, curve in curves.items() if curve}


class HeldOutPerplexity(Measure):
    """``held_out``: the perplexity on rows that neither the training nor a selection has seen, by ``cera train test``.

    Args:
        settings: Values by dotted key, which give the rows as ``data.validation``.
        name: Name of the value; the file in the run directory is ``NAME.json``.
    """

    def __init__(self, settings: Mapping[str, Any], name: str = "held_out_perplexity") -> None:
        if not any(key.startswith("data.validation") for key in settings):
            raise StudyError(
                f"measure.held_out.settings must set data.validation, the rows to measure on, got {settings}."
            )
        self.name = name
        self.settings = check_settings("measure.held_out.settings", settings)

    def command(self, run_dir: Path) -> list[str] | None:
        """Return the command that tests the last checkpoint."""
        callback = {"class_path": "cera.callbacks.MeasuredFile", "init_args": {"file": f"{self.name}.json"}}
        given = {"trainer.callbacks+": callback, **self.settings, "ckpt_path": str(_last_checkpoint(run_dir))}
        return [*CERA, "train", "test", f"--config={run_dir / 'config.yaml'}", *as_options(given)]

    def values(self, run: FinishedRun) -> dict[str, float]:
        """Return the perplexity under the measure's name."""
        file = run.path / f"{self.name}.json"
        return {self.name: number(file, read_json_object(file), "test/perplexity")} if file.exists() else {}


class SpectraMeasures(Measure):
    """``spectra``: effective rank, AUC-90 and the like of the last spectra that ``SpectralTracker`` has written.

    Args:
        protocol: The convention; see ``cera.spectral.convention``. Names of values end in it, if it is not ours.
        quantity: Which matrix, such as ``update`` or ``latent``. Names of values begin with it, if not ``update``.
        centre: Whether the mean over tokens is subtracted, in place of what the convention says. Names of values then
            end in ``_centred`` or ``_uncentred``.
    """

    def __init__(self, protocol: Protocol = "ours", quantity: Quantity = "update", centre: bool | None = None) -> None:
        for name, value, known in (("protocol", protocol, PROTOCOLS), ("quantity", quantity, get_args(Quantity))):
            if value not in known:
                raise StudyError(f"measure.spectra.{name} must be one of {', '.join(known)}, got {value!r}.")
        if centre not in (None, True, False):
            raise StudyError(f"measure.spectra.centre must be true or false, got {centre!r}.")
        self.protocol, self.quantity, self.centre = protocol, quantity, centre

    def values(self, run: FinishedRun) -> dict[str, float]:
        """Return the detailed measures, each as one value over the layers of the convention."""
        spectra, convention = run.spectra(), PROTOCOLS[self.protocol]
        if self.centre is not None:
            convention = replace(convention, centre=self.centre)
        if not spectra:
            return {}
        sample = spectra[-1].sample
        if sample.tokens != convention.tokens:
            raise RunError(
                f"{run.path}: protocol {self.protocol} measures tokens {convention.tokens!r}, and the run recorded "
                f"{sample.tokens!r}: give its SpectralTracker protocol: {self.protocol}."
            )
        layers = spectra[-1].values.get(matrix_name(self.quantity, convention.centre), {})
        means = summarize(layers, spectra[-1].ranks, convention).means
        prefix = "" if self.quantity == "update" else f"{self.quantity}_"
        suffix = "" if self.protocol == "ours" else f"_{self.protocol}"
        suffix += {None: "", True: "_centred", False: "_uncentred"}[self.centre]
        return {
            f"{prefix}{name}{suffix}": means[name][ALL_LAYERS]
            for name, measure in MEASURES.items()
            if measure.detailed and ALL_LAYERS in means.get(name, {})
        }


class TaskAccuracy(Measure):
    """``evaluation``: the metrics of a task, by ``cera evaluate``, such as ``smol_pass@1``.

    Args:
        config: Configuration with an ``evaluation``.
        name: Name of the evaluation.
    """

    files = ("config",)

    def __init__(self, config: str, name: str) -> None:
        self.config, self.name = config, name

    def command(self, run_dir: Path) -> list[str] | None:
        """Return the command that evaluates the adapter, or goes on with an evaluation that was stopped."""
        return [
            *CERA,
            "evaluate",
            f"--config={self.config}",
            f"--adapter={run_dir}",
            f"--evaluation.name={self.name}",
        ]

    def values(self, run: FinishedRun) -> dict[str, float]:
        """Return each metric, each of the task's own, and shares of degenerate samples, as ``NAME_METRIC``."""
        file = run.path / "eval" / self.name / "eval.json"
        if not file.exists():
            return {}
        report = read_json_object(file)
        values: dict[str, float] = {}
        for group in (report.get("metrics"), report.get("summary", {})):
            if not isinstance(group, dict) or not all(isinstance(metric, dict) for metric in group.values()):
                raise RunError(f"{file} has no metrics: it is no report of an evaluation.")
            values |= {f"{self.name}_{name}": number(file, metric, "value") for name, metric in group.items()}
        records = self._records(run, ("key", "samples", "correct", "finished"))
        shares = {} if records is None else degenerate_shares(records)
        return values | {f"{self.name}_{name}": share for name, share in shares.items()}

    def problems(self, run: FinishedRun) -> dict[str, ProblemScores]:
        """Return how each problem was solved."""
        records = self._records(run, ("key", "correct"))
        scores = None if records is None else ProblemScores.of_records(records)
        return {} if scores is None else {self.name: scores}

    def _records(self, run: FinishedRun, required: Sequence[str]) -> list[Record] | None:
        """Return the records with the ``required`` fields; ``None`` if they are gone, as from a run that was copied."""
        file = run.path / "eval" / self.name / "records.jsonl"
        return read(file, required) if file.exists() else None


BUILT_IN: dict[str, type[Measure]] = {
    "perplexity": FinalPerplexity,
    "held_out": HeldOutPerplexity,
    "spectra": SpectraMeasures,
    "evaluation": TaskAccuracy,
    "general_text": GeneralText,
    "linearization": LinearizationMeasure,
    "interventions": InterventionsMeasure,
    "learned_mix": LearnedMixMeasure,
}
"""The measures that a study's file names without a class path."""


def build_measures(content: Any, folder: Path) -> tuple[Measure, ...]:
    """Return the measures of a study.

    Args:
        content: The field ``measure`` of its file.
        folder: The folder that the names of files are relative to.

    Raises:
        StudyError: A measure or an argument of one does not exist.
    """
    if not isinstance(content, list):
        raise StudyError(f"measure must be a list, got {content!r}.")
    return tuple(_build(written, folder) for written in content)


def _build(written: Any, folder: Path) -> Measure:
    if isinstance(written, dict) and len(written) == 1:
        ((name, arguments),) = written.items()
        arguments = dict(mapping(f"measure.{name}", arguments))
    else:
        name, arguments = written, {}
    chosen = _measure_class(name)
    known = list(inspect.signature(chosen).parameters)
    for key in arguments:
        if key not in known:
            raise StudyError(f"measure.{name} has the unknown key {key!r}; there are {', '.join(known) or 'none'}.")
    for key in set(chosen.files) & arguments.keys():
        arguments[key] = config_file(f"measure.{name}.{key}", arguments[key], folder)
    try:
        return chosen(**arguments)
    except TypeError as error:
        raise StudyError(f"measure.{name}: {error}.") from error


def _measure_class(name: Any) -> type[Measure]:
    if isinstance(name, str) and name in BUILT_IN:
        return BUILT_IN[name]
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    try:
        chosen = getattr(importlib.import_module(module), attribute) if module else None
    except (ImportError, AttributeError) as error:
        raise StudyError(f"measure: {name} cannot be imported: {error}.") from error
    if not (isinstance(chosen, type) and issubclass(chosen, Measure)):
        raise StudyError(f"measure: {name!r} must be {', '.join(BUILT_IN)} or the class path of a measure.")
    return chosen


def _last_checkpoint(run_dir: Path) -> Path:
    newest = newest_checkpoint(run_dir / "checkpoints")
    if newest is None:
        raise RunError(f"{run_dir} has no checkpoint to measure.")
    return newest
