"""Formats what ``cera intervene`` measures, for the terminal."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from cera.cli.tables import table
from cera.interventions.affine import LayerFit, Level
from cera.interventions.summary import ConditionSummary, DecileSummary


def layer_table(fits: Mapping[str, LayerFit], level: Level) -> str:
    """Return a row for each layer, and their mean: gain, offset, R^2 at all levels, and energies at one level."""
    rows: list[list[Any]] = []
    for name, fit in fits.items():
        fitted, held = fit.maps[level], fit.held_out
        r_squared = [100 * held[each].r_squared for each in held]
        energies = [100 * share for share in (held[level].gain, held[level].offset, held[level].curvature)]
        fit_r_squared = 100 * fit.calibration[level].r_squared
        rows.append([name, fitted.mean_gain, fitted.offset.norm().item(), fit_r_squared, *r_squared, *energies])
    rows.append(["mean", *(fmean(column) for column in list(zip(*rows, strict=True))[1:])])
    headers = ["layer", "gain", "|offset|", "R2 fit", "R2 scalar", "diagonal", "full", "gain %", "offset %", "curv. %"]
    formats = ["", ".3f", ".3f", *[".2f"] * 7]
    return f"""{table(rows, headers, floatfmt=formats)}

Of the {level} map: mean of C's diagonal, norm of b, and the shares of act(z)'s energy in gain, offset and curvature;
gain and offset are not orthogonal, so that a share may be above 100.
R2: the share of act(z) less its mean that a map reproduces, on the rows of the fit and, at each level, on those that
are measured. R2 and shares in percent; those without `fit` are of the measured rows. All tokens (prompt and answer)."""


def condition_table(summaries: Sequence[ConditionSummary]) -> str:
    """Return a row for each condition: NLL, its difference to the whole adapter, and KL, with intervals."""
    rows = [
        [summary.label, f"{summary.nll.value:.4f}", str(summary.difference), _positive(summary.kl)]
        for summary in summaries
    ]
    headers = ["condition", "NLL", "NLL - whole (95% interval)", "KL(whole || condition)"]
    return table(rows, headers, verbatim=[1, 2, 3])


def decile_table(deciles: Sequence[DecileSummary], shown: Sequence[str]) -> str:
    """Return a row for each decile of difficulty: NLL of the base, of the whole adapter, and differences to it.

    Args:
        deciles: The deciles.
        shown: Labels of the conditions to show.
    """
    with_other = deciles[0].benefit is not None
    rows = []
    for decile in deciles:
        row = [str(decile.decile), str(decile.tokens), f"{decile.base.value:.4f}", f"{decile.nll['whole'].value:.4f}"]
        row += [str(decile.difference[label]) for label in shown]
        rows.append([*row, str(decile.benefit)] if with_other else row)
    headers = ["decile", "tokens", "NLL base", "NLL whole", *(f"{label} - whole" for label in shown)]
    if with_other:
        headers.append("other adapter - whole")
    return table(rows, headers, verbatim=range(len(headers)))


def layer_costs_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each layer, with the KL of each condition in that layer alone.

    Args:
        rows: As ``cera.interventions.report.condition_rows``, with the ``layer``.
    """
    by_layer: dict[str, dict[str, float]] = {}
    for row in rows:
        by_layer.setdefault(row["layer"], {})[row["condition"]] = row["kl"]
    labels = list(dict.fromkeys(row["condition"] for row in rows))
    lines = [[name, *(f"{values[label]:.2e}" for label in labels)] for name, values in by_layer.items()]
    headers = ["KL(whole || condition)", *labels]
    return table(lines, headers, verbatim=range(1, len(headers)))


def exact_match_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each condition of a task, with the paired test against the whole adapter."""
    lines = []
    for row in rows:
        line = [row["condition"], f"{row['value']:.2%} ({row['low']:.2%}, {row['high']:.2%})"]
        if "p_value" in row:
            line += [f"{row['minus_whole']:+.2%} ({row['minus_whole_low']:+.2%}, {row['minus_whole_high']:+.2%})"]
            line += [str(row.get("only_whole", "")), str(row.get("only_condition", "")), f"{row['p_value']:.4f}"]
        lines.append([*line, *[""] * (6 - len(line))])
    metric = f"{rows[0]['metric']} (95% interval)"
    headers = ["condition", metric, "minus whole (95% interval)", "only whole", "only condition", "p"]
    return table(lines, headers, verbatim=range(1, 6))


def convention(tokens: int, problems: int, fit_tokens: int, resamples: int) -> str:
    """Return the sentences that say what the numbers are of."""
    return (
        f"NLL and KL in nats per answer token: {tokens} teacher-forced tokens of {problems} problems; KL is of the "
        f"prediction at each.\n95% intervals: {resamples} resamples of whole problems, each mean weighted by tokens; "
        f"differences are paired by token.\nThe maps were fitted to {fit_tokens} tokens (prompt and answer) of other "
        "rows; gain and offset are parts of the affine fit."
    )


def _positive(estimate: Any) -> str:
    return f"{estimate.value:.6f} ({estimate.low:.6f}, {estimate.high:.6f})"
