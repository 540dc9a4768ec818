"""Prints how much the convention changes the effective rank and AUC-90 of one adapter, as a table for docs/spectra.md.

    python scripts/spectra_conventions.py runs/compare/cera runs/compare/lora

Each row of the table changes one part of the convention; the last ones are the protocols as a whole. The documents are
the word problems that `cera spectra` measures on.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from cera.cli.tables import table
from cera.data.measured import measured_batches
from cera.runs.finished import FinishedRun
from cera.runs.saved_adapter import SavedAdapter
from cera.spectral.aggregate import ALL_LAYERS, OURS, summarize
from cera.spectral.convention import PROTOCOLS, Convention, matrix_name
from cera.spectral.files import Spectra
from cera.spectral.recorder import measure

CONVENTIONS = {
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


def measured(saved: SavedAdapter, convention: Convention) -> Spectra:
    """Measure the updates of an adapter at the tokens of a convention."""
    batches = measured_batches(saved.base, None, convention.rows, convention.tokens == "with_padding")
    return measure(saved.load(), batches, ["update"], convention.tokens)


def main() -> None:
    """Measure each adapter once for each kind and number of tokens, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    runs = parser.parse_args().runs
    adapters = [SavedAdapter.find(folder) for folder in runs]
    spectra: dict[tuple[SavedAdapter, str, int], Spectra] = {}
    rows = []
    for name, convention in CONVENTIONS.items():
        cells = []
        for saved in adapters:
            key = (saved, convention.tokens, convention.rows)
            if key not in spectra:
                spectra[key] = measured(saved, convention)
            layers = spectra[key].values[matrix_name("update", convention.centre)]
            means = summarize(layers, spectra[key].ranks, convention).means
            cells += [means[measure][ALL_LAYERS] for measure in ("effective_rank", "auc_90")]
        rows.append([name, spectra[key].sample.count, *cells])
    headers = [f"{FinishedRun.read(folder).label}: {measure}" for folder in runs for measure in ("ER", "AUC-90")]
    print(table(rows, ["convention", "tokens", *headers], ".1f", style="markdown", intfmt=","))


if __name__ == "__main__":
    main()
