"""The results of ``cera intervene`` as rows for CSV files and JSON."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cera.evaluation.compare import EvaluationComparison
from cera.interventions.affine import LEVELS, LayerFit
from cera.interventions.summary import ConditionSummary, DecileSummary, Estimate
from cera.runs.files import replacing

Row = dict[str, Any]
"""A line of a table, by column."""


def layer_rows(fits: Mapping[str, LayerFit]) -> list[Row]:
    """Return a row for each layer and level: mean gain, norm of the offset, and the shares of the parts."""
    return [
        {
            "layer": name,
            "level": level,
            "gain": fit.maps[level].mean_gain,
            "offset_norm": fit.maps[level].offset.norm().item(),
            **{f"{key}_fit": value for key, value in vars(fit.calibration[level]).items()},
            **{f"{key}_held_out": value for key, value in vars(fit.held_out[level]).items()},
        }
        for name, fit in fits.items()
        for level in LEVELS
    ]


def condition_rows(summaries: Iterable[ConditionSummary]) -> list[Row]:
    """Return a row for each condition."""
    return [
        {
            "condition": summary.label,
            **_columns("nll", summary.nll),
            **_columns("nll_minus_whole", summary.difference),
            **_columns("kl", summary.kl),
        }
        for summary in summaries
    ]


def decile_rows(deciles: Iterable[DecileSummary]) -> list[Row]:
    """Return a row for each decile and condition; those of the base and of the other adapter's benefit have a name."""
    rows = []
    for decile in deciles:
        begin = {"decile": decile.decile, "tokens": decile.tokens}
        rows.append({**begin, "condition": "base", **_columns("nll", decile.base)})
        for label, nll in decile.nll.items():
            columns = {**_columns("nll", nll), **_columns("nll_minus_whole", decile.difference[label])}
            rows.append({**begin, "condition": label, **columns})
        if decile.benefit is not None:
            rows.append({**begin, "condition": "other adapter", **_columns("nll_minus_whole", decile.benefit)})
    return rows


def exact_match_rows(
    reports: Mapping[str, Mapping[str, Any]], comparisons: Mapping[str, EvaluationComparison]
) -> list[Row]:
    """Return a row for each condition of a task: its first metric, and the paired test against the whole adapter."""
    rows = []
    for label, report in reports.items():
        metric, values = next(iter(report["metrics"].items()))
        row = {"condition": label, "metric": metric, "problems": report["problems"], **values}
        if label in comparisons:
            comparison = comparisons[label]
            difference = comparison.metrics[0].difference
            row |= {"minus_whole": difference.difference, "p_value": difference.p_value}
            row |= {"minus_whole_low": difference.interval.low, "minus_whole_high": difference.interval.high}
            if comparison.mcnemar is not None:
                row |= {"only_whole": comparison.mcnemar.only_a, "only_condition": comparison.mcnemar.only_b}
        rows.append(row)
    return rows


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with all of their columns; a cell without a value is empty."""
    with replacing(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(column for row in rows for column in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write results and settings as JSON."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")


def _columns(name: str, estimate: Estimate) -> Row:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
