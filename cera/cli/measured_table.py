"""Formats what ``validate`` and ``test`` measure, for the terminal: a row for a group of layers, not for each layer."""

from collections.abc import Mapping
from typing import Any

from cera.cli.tables import table
from cera.spectral.aggregate import ALL_LAYERS
from cera.spectral.measures import MEASURES


def measured_table(metrics: Mapping[str, float]) -> str:
    """Return the metrics as a table, and those of the spectra as a second one; values of single layers are left out.

    Args:
        metrics: By name, as ``CausalLM`` and ``cera.spectral.aggregate.metrics`` name them.
    """
    rows = [[name, value] for name, value in metrics.items() if not name.startswith("spectra")]
    parts = [table(rows, ["metric", "value"], floatfmt=".4f")]
    by_group: dict[tuple[str, str], dict[str, float]] = {}
    for name, value in metrics.items():
        quantity, *rest = name.split("/")
        if quantity.startswith("spectra") and len(rest) == 2 and rest[0] in MEASURES:
            by_group.setdefault((quantity, rest[1]), {})[rest[0]] = value
    if by_group:
        parts.append(_spectra(by_group))
    return "\n\n".join(parts)


def _spectra(by_group: dict[tuple[str, str], dict[str, float]]) -> str:
    """Return a row for each quantity and group of layers, with the measures as columns."""
    measures = [measure for name, measure in MEASURES.items() if any(name in values for values in by_group.values())]
    rows: list[list[Any]] = []
    for (prefix, group), values in by_group.items():
        quantity = prefix.removeprefix("spectra").removeprefix("_") or "update"
        layers = "all" if group == ALL_LAYERS else group
        rows.append([quantity, layers, *(values.get(measure.name) for measure in measures)])
    headers = ["mean over layers", "", *(measure.heading for measure in measures)]
    return table(rows, headers, floatfmt=["", "", *(measure.format for measure in measures)])
