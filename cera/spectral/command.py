"""Compares the spectra of finished adapters: a table of all registered measures, a figure, and optionally a CSV file.

    cera spectra runs/smol_cera runs/smol_lora          # as their runs recorded them
    cera spectra my-adapter --data chats.jsonl          # any adapter directory, measured now
    cera spectra runs/* --protocol authors              # in the convention of the authors' code
    cera spectra runs/* --csv spectra.csv               # every layer

Without --protocol and --centre there are two tables, and two rows of panels: of the matrix as it is, and of the matrix
minus its mean over the tokens. The figure shows singular values, cumulative energy and effective rank by layer (paper
Fig. 1, 3 and 4).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from matplotlib.figure import Figure
from peft import PEFT_TYPE_TO_CONFIG_MAPPING

from cera.cli.command_parser import CommandParser
from cera.cli.configured_rows import chat_rows
from cera.cli.outputs import check_outputs
from cera.cli.paths import expand_home, user_path
from cera.cli.run_command import run_command
from cera.cli.spectra_table import ConventionTable, write_csv
from cera.data.measured import measured_batches
from cera.progress import progress
from cera.runs.finished import FinishedRun, RunError
from cera.runs.saved_adapter import SavedAdapter
from cera.runs.settings import config_labels
from cera.spectral.aggregate import last_layers, summarize
from cera.spectral.convention import PROTOCOLS, Aggregate, Convention, Protocol, describe_matrix, matrix_name
from cera.spectral.figures import side_by_side
from cera.spectral.files import Quantity, Spectra
from cera.spectral.recorder import measure
from cera.spectral.sample import Tokens, differing_samples


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


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status: 2 after a user's mistake."""
    parser = CommandParser("spectra", __doc__)
    parser.add_argument("folders", nargs="+", type=user_path, metavar="RUN_OR_ADAPTER_DIR")
    parser.add_argument("--quantity", choices=get_args(Quantity), default="update", help="measured matrix")
    parser.add_argument(
        "--protocol", choices=get_args(Protocol), help="whose convention (default: ours, both centrings)"
    )
    parser.add_argument("--centre", choices=("true", "false"), help="whether the mean over tokens is subtracted")
    parser.add_argument("--layers", type=int, help="number of the last adapted layers to take (default: all)")
    parser.add_argument("--aggregate", choices=get_args(Aggregate), help="how layers become one number")
    parser.add_argument("--tokens", choices=get_args(Tokens), help="which positions to measure")
    parser.add_argument(
        "--data", type=user_path, help="chat file or configuration to measure all on (default: what runs recorded)"
    )
    parser.add_argument(
        "--rows",
        type=int,
        help="number of rows to measure on if nothing is recorded (default: 32; 128 with --protocol authors)",
    )
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
    conventions = _conventions(options)
    adapters = [_adapter_spectra(folder, options, conventions[0]) for folder in options.folders]
    labelled = dict(zip(_distinct_labels(adapters), (adapter.spectra for adapter in adapters), strict=True))
    tables = [_table(labelled, options.quantity, convention) for convention in conventions]
    tables = [shown for shown in tables if shown.summaries]
    differing = None if options.quantity == "weight" else differing_samples(tables[0].samples)
    print("\n\n".join(map(str, tables)))
    if differing is not None:
        print(f"\nwarning: {differing} --data measures all on the same rows.", file=sys.stderr)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        _figure(labelled, tables, differing).savefig(options.out)
        print(f"\nfigure: {options.out}")
    if options.csv is not None:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        write_csv(options.csv, tables)
        print(f"CSV: {options.csv}")


def _conventions(options: argparse.Namespace) -> list[Convention]:
    """Return the convention that the options name, or if they leave the centring open, it and the centred one."""
    convention = PROTOCOLS[options.protocol or "ours"]
    given = {name: getattr(options, name) for name in ("layers", "aggregate", "tokens", "rows")}
    convention = replace(convention, **{name: value for name, value in given.items() if value is not None})
    if options.centre is not None:
        return [replace(convention, centre=options.centre == "true")]
    if options.protocol is not None or options.quantity == "weight":
        return [convention]
    return [convention, replace(convention, centre=True)]


def _table(labelled: dict[str, Spectra], quantity: str, convention: Convention) -> ConventionTable:
    """Return the measures of the adapters; without those of runs of an earlier version if the matrix is centred."""
    matrix = matrix_name(quantity, convention.centre)
    shown = {label: spectra for label, spectra in labelled.items() if spectra.values.get(matrix)}
    return ConventionTable(
        matrix,
        convention,
        {label: spectra.sample for label, spectra in shown.items()},
        {
            label: summarize(
                spectra.values[matrix], spectra.ranks, convention, spectra.shapes if matrix == "weight" else None
            )
            for label, spectra in shown.items()
        },
    )


def _figure(labelled: dict[str, Spectra], tables: list[ConventionTable], differing: str | None) -> Figure:
    """Return a figure with a row of panels for each table. Its lines are means over layers, whatever the aggregate."""
    rows = {
        describe_matrix(shown.matrix): {
            label: last_layers(labelled[label].values[shown.matrix], shown.convention.layers)
            for label in shown.summaries
        }
        for shown in tables
    }
    drawn = replace(tables[0], convention=replace(tables[0].convention, aggregate="mean_of_layers"))
    return side_by_side(rows, differing or drawn.heading.partition("; ")[2])


def _adapter_spectra(folder: Path, options: argparse.Namespace, convention: Convention) -> AdapterSpectra:
    """Return the newest spectra that the run recorded, if they are of the convention's tokens, or measure them now."""
    run = FinishedRun.read(folder) if (folder / "config.yaml").is_file() else None
    recorded = run.spectra() if run is not None and options.data is None else []
    if recorded and _serves(recorded[-1], options, convention):
        spectra, source = recorded[-1], f"recorded at step {recorded[-1].step}"
    else:
        saved = SavedAdapter.find(folder, options.base)
        spectra, source = _measure(saved, options, convention), "measured now"
    if not spectra.values.get(options.quantity):
        raise RunError(f"--quantity {options.quantity}: {folder} has none ({source}; --data measures anew).")
    print(f"{folder}: {source}", file=sys.stderr)
    return AdapterSpectra(folder, run.config if run is not None else _saved_config(saved.settings), spectra)


def _serves(recorded: Spectra, options: argparse.Namespace, convention: Convention) -> bool:
    """Return whether recorded spectra are of the tokens and the centring that the options name, if they do.

    A quantity that was not recorded at all is an error later on: measuring it on other rows must be asked for.
    """
    names_tokens = options.protocol is not None or options.tokens is not None
    lacks_centred = matrix_name(options.quantity, convention.centre) not in recorded.values
    if convention.centre and lacks_centred and options.quantity in recorded.values:
        return False
    return options.quantity == "weight" or not names_tokens or recorded.sample.tokens == convention.tokens


def _measure(saved: SavedAdapter, options: argparse.Namespace, convention: Convention) -> Spectra:
    batches = measured_batches(
        saved.base, chat_rows(options.data), convention.rows, convention.tokens == "with_padding", saved.chat_template
    )
    print(f"loading {saved.base} with {saved.folder}", file=sys.stderr, flush=True)
    shown = progress(batches, "measuring spectra", "batch")
    return measure(saved.load(), shown, [options.quantity], convention.tokens)


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
