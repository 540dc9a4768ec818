"""Measures of what an adapter's activation does. Adapters without one, such as LoRA, have no such values."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from peft import PeftConfig

from cera.foreign_files import read_json_object
from cera.interventions import Level, can_intervene
from cera.linearize import can_linearize
from cera.runs.adapter_settings import import_method, make_config, read_settings
from cera.runs.adapter_weights import read_weights
from cera.runs.finished import FinishedRun, RunError, read_config
from cera.studies.axes import StudyError
from cera.studies.measure import CERA, Measure, number


class LinearizationMeasure(Measure):
    """``linearization``: how well the best LoRA reproduces a CeRA adapter, by ``cera linearize``.

    Args:
        rank: Rank of the LoRA; ``None`` takes the adapter's r.
        rows: Number of rows; a quarter is held out of the fit.
        data: Chat file to fit to and measure on, or configuration with ``data.validation``; word problems by default.
    """

    files = ("data",)

    def __init__(self, rank: int | None = None, rows: int = 256, data: str | None = None) -> None:
        _check_counts("linearization", rank=rank, rows=rows)
        self.options = _options(rank=rank, rows=rows, data=data)

    def command(self, run_dir: Path) -> list[str] | None:
        """Return the command that fits the LoRA; ``None`` if the adapter cannot be linearized."""
        if not can_linearize(_saved_config(run_dir)):
            return None
        return [*CERA, "linearize", str(run_dir), *self.options, "--overwrite"]  # of one that was stopped

    def values(self, run: FinishedRun) -> dict[str, float]:
        """Return the share of the update's energy that is kept on held-out tokens, and the perplexities there."""
        file = run.path / "linearized" / "linearization.json"
        if not file.exists():
            return {}
        content = read_json_object(file)
        perplexity = content.get("perplexity")
        if not isinstance(perplexity, dict):
            raise RunError(f"{file} has no perplexity: it is of no linearization.")
        return {
            "linearization_kept_energy": number(file, content, "held_out_share"),
            "linearization_perplexity": number(file, perplexity, "LoRA"),
            "linearization_adapter_perplexity": number(file, perplexity, "CeRA"),
        }


class InterventionsMeasure(Measure):
    """``interventions``: what answers lose where the activation is replaced by a part of it, by ``cera intervene``.

    Args:
        rows: Number of rows to measure on.
        fit_rows: Number of other rows that the parts are fitted to.
        level: Form of the linear part; see ``cera.interventions``.
        data: Chat file of these rows, or configuration with ``data.validation``; word problems by default.
        detailed: Whether the affine condition is measured by the tokens' difficulty, too, and in one layer at a time on
            a quarter of the rows.
    """

    files = ("data",)

    def __init__(
        self,
        rows: int = 64,
        fit_rows: int = 128,
        level: Level = "full",
        data: str | None = None,
        detailed: bool = False,
    ) -> None:
        _check_counts("interventions", rows=rows, fit_rows=fit_rows)
        if not isinstance(detailed, bool):
            raise StudyError(f"measure.interventions.detailed must be true or false, got {detailed!r}.")
        if level not in get_args(Level):
            raise StudyError(f"measure.interventions.level must be one of {', '.join(get_args(Level))}, got {level!r}.")
        self.detailed = detailed
        self.options = _options(rows=rows, fit_rows=fit_rows, level=level, data=data)
        if detailed:
            self.options += ["--by-layer", f"--layer-rows={-(-rows // 4)}"]

    def command(self, run_dir: Path) -> list[str] | None:
        """Return the command that intervenes on the adapter; ``None`` if it has no activation to replace."""
        if not can_intervene(_saved_config(run_dir)):
            return None
        return [*CERA, "intervene", str(run_dir), *self.options, "--overwrite"]  # of one that was stopped

    def values(self, run: FinishedRun) -> dict[str, float]:
        """Return the loss of each condition less that of the whole adapter, in nats per answer token.

        Where it is ``detailed``, that of the affine condition by decile of difficulty and by layer is as
        ``interventions_affine_decile_3_loss_difference`` and the like.
        """
        file = run.path / "interventions" / "interventions.json"
        if not file.exists():
            return {}
        content = read_json_object(file)
        if self.detailed and "by_layer" not in content:  # of a measurement without it, or one that was stopped
            return {}
        rows = [(row, "") for row in _rows(file, content, "conditions")]
        if self.detailed:
            rows += [(row, f"_decile_{row.get('decile')}") for row in _rows(file, content, "deciles")]
            rows += [(row, f"_{row.get('layer')}") for row in _rows(file, content, "by_layer")]
        values = {}
        for row, where in rows:
            condition = str(row.get("condition")).split()[0]
            if condition not in ("whole", "base") and (condition == "affine" or not where):
                values[f"interventions_{condition}{where}_loss_difference"] = number(file, row, "nll_minus_whole")
        return values


class LearnedMixMeasure(Measure):
    """``learned_mix``: what gamma of ``z + gamma (silu(z) - z)`` has become; 0 is the identity, and 1 is SiLU."""

    def values(self, run: FinishedRun) -> dict[str, float]:
        """Return ``gamma``, its mean over the adapted modules, with ``gamma_lowest`` and ``gamma_highest``."""
        weights = read_weights(run.path / "adapter")
        gammas = [float(weight) for name, weight in weights.items() if name.endswith("cera_activation.gamma")]
        if not gammas:
            return {}
        return {"gamma": fmean(gammas), "gamma_lowest": min(gammas), "gamma_highest": max(gammas)}


def _rows(file: Path, content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    rows = content.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RunError(f"{file} has no {key}: it is of no interventions.")
    return rows


def _saved_config(run_dir: Path) -> PeftConfig:
    """Return the configuration of the adapter that a run has saved."""
    folder = run_dir / "adapter"
    settings = read_settings(folder)
    import_method(folder, settings["peft_type"], read_config(run_dir)["model"]["adapter"]["class_path"])
    return make_config(folder, settings)


def _check_counts(measure: str, **counts: Any) -> None:
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise StudyError(f"measure.{measure}.{name} must be an integer of at least 1, got {value!r}.")


def _options(**values: Any) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]
