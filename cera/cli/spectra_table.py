"""Formats the spectra of several adapters: tables for the terminal, and a CSV file with every layer."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cera.cli.tables import table
from cera.spectral.aggregate import SpectralSummary
from cera.spectral.convention import Convention, describe_matrix
from cera.spectral.files import CENTRED
from cera.spectral.measures import MEASURES
from cera.spectral.sample import Sample


@dataclass(frozen=True)
class ConventionTable:
    """Measures of several adapters in one convention.

    Attributes:
        matrix: Name of the measured matrix, as in ``Spectra.values``.
        convention: How it is aggregated.
        samples: The tokens that were measured, by label of the adapter.
        summaries: The measures, by label of the adapter.
    """

    matrix: str
    convention: Convention
    samples: dict[str, Sample]
    summaries: dict[str, SpectralSummary]

    @property
    def heading(self) -> str:
        """What the numbers are of: matrix, centring, layers, aggregation, and tokens if they are the same for all."""
        parts = [describe_matrix(self.matrix), self.convention.aggregation]
        if self.matrix != "weight":
            distinct = {str(sample) for sample in self.samples.values()}
            parts.append(distinct.pop() if len(distinct) == 1 else "not all at the same tokens")
        return "; ".join(parts)

    def __str__(self) -> str:
        return f"{self.heading}\n\n{measure_table(self.summaries)}"


def measure_table(summaries: dict[str, SpectralSummary]) -> str:
    """Format a row for each adapter and for each of its modules; measures that no adapter has are left out.

    Args:
        summaries: By label of the adapter.
    """
    measures = [m for m in MEASURES.values() if any(summary.means[m.name] for summary in summaries.values())]
    rows: list[list[Any]] = [
        [label, group, len(names), *(summary.means[measure.name].get(group) for measure in measures)]
        for label, summary in summaries.items()
        for group, names in summary.groups.items()
    ]
    headers = ["adapter", "module", "layers", *(measure.heading for measure in measures)]
    return table(rows, headers, floatfmt=["", "", "", *(measure.format for measure in measures)])


def write_csv(path: Path, tables: Sequence[ConventionTable]) -> None:
    """Write a line for each adapter, matrix and layer, with the registered measures as columns.

    Args:
        path: The file.
        tables: Each gives the lines of one matrix.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        sample = ["tokens", "token_count", "data"]
        writer.writerow(["adapter", "quantity", "centred", *sample, "module", "layer", "name", *MEASURES])
        for shown in tables:
            for label, summary in shown.summaries.items():
                measured = shown.samples[label]
                start = [label, shown.matrix.removesuffix(CENTRED), CENTRED in shown.matrix]
                start += ["", "", ""] if shown.matrix == "weight" else [measured.tokens, measured.count, measured.data]
                for module, names in summary.modules.items():
                    for number, name in names.items():
                        values = [summary.by_layer[measure].get(name, "") for measure in MEASURES]
                        writer.writerow([*start, module, number, name, *values])
