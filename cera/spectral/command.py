"""Effective rank and AUC-90 of finished adapters, side by side: a table and a figure (paper Fig. 1, 3 and 4)."""

import argparse
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from cera.data import ChatData, ChatDataset, DataError, ReasoningGymWordProblems
from cera.models.backbone import BackboneError
from cera.runs.finished import FinishedRun, RunError, adapter_label
from cera.runs.saved_adapter import AdapterError, SavedAdapter
from cera.spectral import SpectrumAccumulator, effective_rank, energy_rank
from cera.spectral.figures import Layers, side_by_side
from cera.spectral.files import Quantity, Spectra
from cera.spectral.hooks import find_branches
from cera.spectral.layer_names import by_module

PROBLEMS = ReasoningGymWordProblems(problem_seed=1)
"""What adapters are measured on unless told otherwise: problems from another seed than those of the training set."""


@torch.no_grad()
def measure(model: nn.Module, batches: Iterable[dict[str, Any]], quantities: list[Quantity]) -> Spectra:
    """The spectra of the default adapter of ``model`` on ``batches``, without dropout.

    Args:
        model: A PEFT model.
        batches: With ``input_ids``, ``position_ids`` and ``tokens`` (False is padding), each (batch, length).
        quantities: Of ``update``, ``latent`` and ``weight``.

    Raises:
        cera.spectral.NonFiniteError: A layer's activations are NaN or infinite.
    """
    model.eval()
    branches = find_branches(model)
    streams = {branch.name: SpectrumAccumulator(branch.name) for branch in branches}
    device = next(model.parameters()).device
    for batch in batches:
        ids, positions, mask = (batch[key].to(device) for key in ("input_ids", "position_ids", "tokens"))
        handles = [h for b in branches for h in b.listen(partial(streams[b.name].update, mask=mask))]
        try:
            model(input_ids=ids, position_ids=positions, logits_to_keep=1)
        finally:
            for handle in handles:
                handle.remove()
    values: dict[str, Layers] = {quantity: {} for quantity in quantities}
    for branch in branches:
        for quantity, sigma in branch.spectra(streams[branch.name], quantities).items():
            values[quantity][branch.name] = sigma.cpu()
    return Spectra(0, values, {branch.name: branch.rank for branch in branches if branch.rank})


def table(spectra: dict[str, Layers], ranks: dict[str, dict[str, int]]) -> str:
    """A row for each adapter and module, and one for the adapter's mean.

    Args:
        spectra: By adapter, then layer: (k,) fp64, descending.
        ranks: By adapter, then layer: its r.
    """
    width = max(len("adapter"), *map(len, spectra))
    rows = [f"{'adapter':<{width}}  {'module':<10} {'layers':>6} {'ER':>8} {'ER / r':>7} {'AUC-90':>7}"]
    for label, layers in spectra.items():
        modules = {module: list(names.values()) for module, names in by_module(layers).items()}
        for group, names in {"mean": list(layers), **modules}.items():
            rank = [effective_rank(layers[name]) for name in names]
            shares = [effective_rank(layers[n]) / ranks[label][n] for n in names if n in ranks[label]]
            ninety = fmean([float(energy_rank(layers[name])) for name in names])
            share = f"{fmean(shares):>7.3f}" if shares else f"{'':>7}"
            rows.append(f"{label:<{width}}  {group:<10} {len(names):>6} {fmean(rank):>8.2f} {share} {ninety:>7.2f}")
    return "\n".join(rows)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status, 2 after a user's mistake."""
    parser = argparse.ArgumentParser(prog="cera spectra", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_OR_ADAPTER_DIR")
    parser.add_argument("--quantity", choices=["update", "latent", "weight"], default="update")
    parser.add_argument("--data", type=Path, help="chat file to measure all of them on, instead of what runs recorded")
    parser.add_argument("--rows", type=int, default=32, help="rows to measure on, where nothing is recorded")
    parser.add_argument("--base", help="base model, instead of the one that an adapter names")
    parser.add_argument("--out", type=Path, default=Path("spectra.png"), help="where the figure goes")
    options = parser.parse_args(arguments)
    try:
        found = [_of_folder(folder, options) for folder in options.folders]
    except (AdapterError, RunError, BackboneError, DataError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    labels = _distinct([label for label, _ in found], options.folders)
    spectra = {label: of.values[options.quantity] for label, (_, of) in zip(labels, found, strict=True)}
    print(table(spectra, {label: of.ranks for label, (_, of) in zip(labels, found, strict=True)}))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    side_by_side(spectra, options.quantity).savefig(options.out)
    print(f"\nfigure: {options.out}")
    return 0


def _of_folder(folder: Path, options: argparse.Namespace) -> tuple[str, Spectra]:
    """(label, spectra): as the run recorded them, else measured now."""
    run = FinishedRun.read(folder) if (folder / "config.yaml").is_file() else None
    if run is not None and options.data is None and (recorded := run.spectra()):
        found, source = recorded[-1], f"recorded at step {recorded[-1].step}"
    else:
        found, source = _measured(folder, options), "measured now"
    if not found.values.get(options.quantity):
        raise RunError(f"--quantity {options.quantity}: {folder} has none ({source}; --data measures anew).")
    print(f"{folder}: {source}", file=sys.stderr)
    return (run.label if run is not None else _label(SavedAdapter.find(folder).settings)), found


def _measured(folder: Path, options: argparse.Namespace) -> Spectra:
    saved = SavedAdapter.find(folder, options.base)
    data = chats_for(saved.base, options.data, options.rows)
    data.setup()
    return measure(saved.load(), data.val_dataloader(), [options.quantity])


def chats_for(base: str, file: Path | None, rows: int) -> ChatData:
    """Rows to measure an adapter on, as the held-out rows of a DataModule, checked but not read.

    Args:
        base: Whose tokenizer encodes them.
        file: A chat file; ``None`` takes ``PROBLEMS``.
        rows: How many rows of it.

    Raises:
        RunError, DataError: The number or the file is not what it should be.
    """
    if rows < 1:
        raise RunError(f"--rows must be at least 1, got {rows}.")
    dataset = ChatDataset(data_files=str(file)) if file else PROBLEMS
    data = ChatData(dataset, base, validation=dataset, validation_rows=rows)
    data.check()
    return data


def _label(settings: dict[str, Any]) -> str:
    return adapter_label(PEFT_TYPE_TO_CONFIG_MAPPING[settings["peft_type"]].__name__, settings)


def _distinct(labels: list[str], folders: list[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    shown = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    return [
        label if labels.count(label) == 1 else f"{name}: {label}" for label, name in zip(labels, shown, strict=True)
    ]
