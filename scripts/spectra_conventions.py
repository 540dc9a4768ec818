"""Prints how much the convention changes the effective rank and AUC-90 of one adapter, as a table for docs/spectra.md.

    python scripts/spectra_conventions.py runs/compare/cera runs/compare/lora

Each row of the table changes one part of the convention; the last ones are the protocols as a whole. The documents are
the word problems that `cera spectra` measures on.
"""

import argparse
from pathlib import Path

from cera.cli.tables import table
from cera.runs.finished import FinishedRun
from cera.runs.saved_adapter import SavedAdapter
from cera.studies.spectra_conventions import CONVENTIONS, measure_conventions


def main() -> None:
    """Measure each adapter once for each kind and number of tokens, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    runs = parser.parse_args().runs
    measured = [measure_conventions(SavedAdapter.find(folder), CONVENTIONS) for folder in runs]
    rows = []
    for name in CONVENTIONS:
        values = [adapter[name] for adapter in measured]
        rows.append(
            [name, values[-1].tokens, *(cell for each in values for cell in (each.effective_rank, each.auc_90))]
        )
    headers = [f"{FinishedRun.read(folder).label}: {measure}" for folder in runs for measure in ("ER", "AUC-90")]
    print(table(rows, ["convention", "tokens", *headers], ".1f", style="markdown", intfmt=","))


if __name__ == "__main__":
    main()
