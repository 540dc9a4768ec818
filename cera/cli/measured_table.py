"""Formats what ``validate`` and ``test`` measure, for the terminal: a row for a group of layers, not for each layer."""

from collections.abc import Mapping
from typing import Any

from cera.cli.tables import table
from cera.spectral.aggregate import ALL_LAYERS, metric_prefix
from cera.spectral.convention import describe_matrix
from cera.spectral.files import MATRICES
from cera.spectral.measures import MEASURES

MATRIX_OF_PREFIX = {metric_prefix(matrix): describe_matrix(matrix) for matrix in MATRICES}


def measured_table(metrics: Mapping[str, float]) -> str:
    """Return the metrics as a table, and those of the spectra as a second one; values of single layers are left out.

    Args:
        metrics: By name, as ``CausalLM`` and ``cera.spectral.aggregate.metrics`` name them.
    """
    others = {name: value for name, value in metrics.items() if not name.startswith("spectra")}
    rows = [[name, value] for name, value in others.items() if "_by_layer/" not in name]
    parts = [table(rows, ["metric", "value"], floatfmt=".4f")]
    by_group: dict[tuple[str, str], dict[str, float]] = {}
    for name, value in metrics.items():
        quantity, *rest = name.split("/")
        if quantity.startswith("spectra") and len(rest) == 2 and rest[0] in MEASURES and MEASURES[rest[0]].detailed:
            by_group.setdefault((quantity, rest[1]), {})[rest[0]] = value
    if by_group:
        parts.append(_spectra(by_group))
    return "\n\n".join(parts)


def _spectra(by_group: dict[tuple[str, str], dict[str, float]]) -> str:
    """Return a row for each matrix and group of layers, with the detailed measures as columns."""
    measures = [measure for name, measure in MEASURES.items() if any(name in values for values in by_group.values())]
    rows: list[list[Any]] = []
    for (prefix, group), values in by_group.items():
        layers = "all" if group == ALL_LAYERS else group
        matrix = MATRIX_OF_PREFIX.get(prefix) or f"protocol {prefix.removeprefix('spectra_')}"
        rows.append([matrix, layers, *(values.get(measure.name) for measure in measures)])
    headers = ["mean over layers", "", *(measure.heading for measure in measures)]
    return table(rows, headers, floatfmt=["", "", *(measure.format for measure in measures)])
