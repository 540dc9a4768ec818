"""How much the convention decides the effective rank and the AUC-90 of one adapter, measured on the same documents.

spectra = measure_conventions(SavedAdapter.find("runs/smol_cera"), CONVENTIONS)
spectra["authors"].effective_rank
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cera.data.measured import measured_batches
from cera.runs.saved_adapter import SavedAdapter
from cera.spectral.aggregate import ALL_LAYERS, OURS, summarize
from cera.spectral.convention import PROTOCOLS, Convention, matrix_name
from cera.spectral.files import Spectra
from cera.spectral.recorder import measure
from cera.studies.report_tables import Table

CONVENTIONS: Mapping[str, Convention] = {
    "ours": OURS,
    "centred": replace(OURS, centre=True),
    "last five layers": replace(OURS, layers=5),
    "of the mean spectrum": replace(OURS, aggregate="spectrum_of_mean"),
    "answer tokens": replace(OURS, tokens="answer"),
    "tokens with padding": replace(OURS, tokens="with_padding"),
    "128 rows": replace(OURS, rows=128),
    "authors, 32 rows": replace(PROTOCOLS["authors"], rows=32),
    "authors": PROTOCOLS["authors"],
}
"""Ours, ours with one part changed at a time, and the authors' as a whole."""


@dataclass(frozen=True)
class ConventionValues:
    """The measures of an adapter's update in one convention.

    Attributes:
        tokens: Number of tokens.
        effective_rank: Effective rank.
        auc_90: Number of leading components with 90% of the energy.
    """

    tokens: int | None
    effective_rank: float
    auc_90: float


def measure_conventions(saved: SavedAdapter, conventions: Mapping[str, Convention]) -> dict[str, ConventionValues]:
    """Measure an adapter's update in several conventions, on the word problems that ``cera spectra`` measures on.

    Args:
        saved: The adapter; its model runs once for each kind and number of tokens.
        conventions: The conventions by name.
    """
    spectra: dict[tuple[str, int], Spectra] = {}
    values = {}
    for name, convention in conventions.items():
        key = (convention.tokens, convention.rows)
        if key not in spectra:
            batches = measured_batches(saved.base, None, convention.rows, convention.tokens == "with_padding")
            spectra[key] = measure(saved.load(), batches, ["update"], convention.tokens)
        layers = spectra[key].values[matrix_name("update", convention.centre)]
        means = summarize(layers, spectra[key].ranks, convention).means
        found = (means[measured][ALL_LAYERS] for measured in ("effective_rank", "auc_90"))
        values[name] = ConventionValues(spectra[key].sample.count, *found)
    return values


def convention_table(values: Mapping[str, ConventionValues], adapter: str) -> Table:
    """Return a row for each convention.

    Args:
        values: The result of ``measure_conventions``.
        adapter: What was measured, in words.
    """
    rows = [
        (name, "-" if each.tokens is None else f"{each.tokens:,}", f"{each.effective_rank:.1f}", f"{each.auc_90:.1f}")
        for name, each in values.items()
    ]
    title = f"Update of {adapter}: the same weights in every row."
    return Table("conventions", title, ("convention", "tokens", "effective rank", "AUC-90"), tuple(rows))
