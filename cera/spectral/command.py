"""Compares the spectra of finished adapters: a table of all registered measures, a figure, and optionally a CSV file.

    cera spectra runs/smol_cera runs/smol_lora          # as their runs recorded them
    cera spectra my-adapter --data chats.jsonl          # any adapter directory, measured now
    cera spectra runs/* --csv spectra.csv               # every layer

The figure shows singular values, cumulative energy and effective rank by layer (paper Fig. 1, 3 and 4).
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from peft import PEFT_TYPE_TO_CONFIG_MAPPING

from cera.cli.command_parser import CommandParser
from cera.cli.outputs import check_outputs
from cera.cli.paths import expand_home, user_path
from cera.cli.run_command import run_command
from cera.cli.tables import table
from cera.data.measured import measured_rows
from cera.progress import progress
from cera.runs.finished import FinishedRun, RunError
from cera.runs.saved_adapter import SavedAdapter
from cera.runs.settings import config_labels
from cera.spectral.aggregate import SpectralSummary, summarize
from cera.spectral.figures import side_by_side
from cera.spectral.files import Quantity, Spectra
from cera.spectral.measures import MEASURES
from cera.spectral.recorder import measure


@dataclass(frozen=True)
class AdapterSpectra:
    """The spectra of one adapter, and where they are from.

    Attributes:
        folder: Directory of the run or the adapter.
        config: Configuration of its run; of an adapter without a run, its own settings only.
        spectra: Its spectra.
    """

    folder: Path
    config: dict[str, Any]
    spectra: Spectra

    def summary(self, quantity: str) -> SpectralSummary:
        """Return the measures of one quantity."""
        return summarize(self.spectra.values[quantity], self.spectra.ranks)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status: 2 after a user's mistake."""
    parser = CommandParser("spectra", __doc__)
    parser.add_argument("folders", nargs="+", type=user_path, metavar="RUN_OR_ADAPTER_DIR")
    parser.add_argument("--quantity", choices=get_args(Quantity), default="update", help="measured matrix")
    parser.add_argument(
        "--data", type=user_path, help="chat file to measure all adapters on (default: what runs recorded)"
    )
    parser.add_argument("--rows", type=int, default=32, help="number of rows to measure on if nothing is recorded")
    parser.add_argument("--base", type=expand_home, help="base model (default: the one that an adapter names)")
    parser.add_argument(
        "--out", type=user_path, metavar="FILE", help="draw the spectra to this file: .png, .pdf or .svg"
    )
    parser.add_argument("--csv", type=user_path, metavar="FILE", help="write the measures of every layer to this file")
    parser.add_overwrite()
    options = parser.parse_args(arguments)
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    check_outputs(options, "out", "csv")
    adapters = [_adapter_spectra(folder, options) for folder in options.folders]
    labels = _distinct_labels(adapters)
    summaries = {label: adapter.summary(options.quantity) for label, adapter in zip(labels, adapters, strict=True)}
    print(measure_table(summaries))
    if options.out is not None:
        values = [adapter.spectra.values[options.quantity] for adapter in adapters]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        side_by_side(dict(zip(labels, values, strict=True)), options.quantity).savefig(options.out)
        print(f"\nfigure: {options.out}")
    if options.csv is not None:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        write_csv(options.csv, summaries, options.quantity)
        print(f"CSV: {options.csv}")


def measure_table(summaries: dict[str, SpectralSummary]) -> str:
    """Format a row for the mean of each adapter and for each of its modules.

    Args:
        summaries: By label of the adapter.
    """
    measures = MEASURES.values()
    rows: list[list[Any]] = [
        [label, group, len(names), *(summary.means[measure.name].get(group) for measure in measures)]
        for label, summary in summaries.items()
        for group, names in summary.groups.items()
    ]
    headers = ["adapter", "module", "layers", *(measure.heading for measure in measures)]
    return table(rows, headers, floatfmt=["", "", "", *(measure.format for measure in measures)])


def write_csv(path: Path, summaries: dict[str, SpectralSummary], quantity: str) -> None:
    """Write a line for each adapter and layer, with the registered measures as columns.

    Args:
        path: The file.
        summaries: By label of the adapter.
        quantity: Name of the measured matrix.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["adapter", "quantity", "module", "layer", "name", *MEASURES])
        for label, summary in summaries.items():
            for module, names in summary.modules.items():
                for number, name in names.items():
                    values = [summary.by_layer[measure].get(name, "") for measure in MEASURES]
                    writer.writerow([label, quantity, module, number, name, *values])


def _adapter_spectra(folder: Path, options: argparse.Namespace) -> AdapterSpectra:
    """Return the newest spectra that the run recorded, or measure them now."""
    run = FinishedRun.read(folder) if (folder / "config.yaml").is_file() else None
    recorded = run.spectra() if run is not None and options.data is None else []
    if recorded:
        spectra, source = recorded[-1], f"recorded at step {recorded[-1].step}"
    else:
        saved = SavedAdapter.find(folder, options.base)
        spectra, source = _measure(saved, options), "measured now"
    if not spectra.values.get(options.quantity):
        raise RunError(f"--quantity {options.quantity}: {folder} has none ({source}; --data measures anew).")
    print(f"{folder}: {source}", file=sys.stderr)
    return AdapterSpectra(folder, run.config if run is not None else _saved_config(saved.settings), spectra)


def _measure(saved: SavedAdapter, options: argparse.Namespace) -> Spectra:
    data = measured_rows(saved.base, options.data, options.rows)
    data.setup()
    print(f"loading {saved.base} with {saved.folder}", file=sys.stderr, flush=True)
    model, batches = saved.load(), list(data.val_dataloader())
    return measure(model, progress(batches, "measuring spectra", "batch"), [options.quantity])


def _saved_config(settings: dict[str, Any]) -> dict[str, Any]:
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[settings["peft_type"]].__name__
    return {"model": {"adapter": {"class_path": kind, "init_args": settings}}}


def _distinct_labels(adapters: Sequence[AdapterSpectra]) -> list[str]:
    """Return the adapters' labels; those that several share get the name or path of the directory in front.

    A label has the adapter, its rank, and the settings in which the runs differ.
    """
    labels = config_labels([adapter.config for adapter in adapters])
    names = [adapter.folder.resolve().name for adapter in adapters]
    if len(set(names)) < len(names):
        names = [str(adapter.folder) for adapter in adapters]
    return [
        label if labels.count(label) == 1 else f"{name}: {label}" for label, name in zip(labels, names, strict=True)
    ]
