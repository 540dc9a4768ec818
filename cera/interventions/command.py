"""Replaces the activation of a trained adapter by a part of it, and reports what the answers lose.

    cera intervene runs/smol_cera                   # a run, or any adapter directory
    cera intervene my-adapter --data chats.jsonl --rows 500 --fit-rows 200 --level full
    cera intervene runs/smol_cera --against runs/smol_lora
    cera intervene runs/smol_cera --by-layer --layers 27 28 29
    cera intervene runs/smol_cera --task configs/eval_smol.yaml

Each activation act(z) is fitted by C z + b, with C a scalar, a diagonal or any matrix, on rows that are not measured.
The conditions are: whole (unchanged), none (branch off), gain (C z), offset (b), affine (C z + b) and curvature
(act(z) - C z - b). Prints NLL and KL of given answers, over all tokens and by their difficulty; tables, a figure and
interventions.json go to interventions/ in RUN_OR_ADAPTER_DIR.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from cera.cli import intervention_tables as tables
from cera.cli.command_parser import CommandParser
from cera.cli.configured_rows import chat_rows
from cera.cli.errors import UsageError
from cera.cli.evaluation_file import read_evaluation
from cera.cli.outputs import check_output
from cera.cli.paths import expand_home, user_path
from cera.cli.run_command import run_command
from cera.data.measured import separate_rows
from cera.interventions.affine import LEVELS, LayerFit, Level
from cera.interventions.exact_match import TaskUnderInterventions
from cera.interventions.figure import figure
from cera.interventions.fitting import fit
from cera.interventions.replacement import can_intervene
from cera.interventions.report import condition_rows, decile_rows, exact_match_rows, layer_rows, write_csv, write_json
from cera.interventions.scores import TokenScores, adapter_nll, conditions, measure
from cera.interventions.summary import RESAMPLES, Summarizer
from cera.models.backbone import load_config
from cera.progress import progress
from cera.runs.adapter_settings import make_config
from cera.runs.saved_adapter import SavedAdapter
from cera.spectral.sample import digits, fingerprint, total

FILES = ("interventions.json", "layers.csv", "conditions.csv", "deciles.csv", "interventions.png")
"""What is always written."""
BY_LAYER, EXACT_MATCH = "by_layer.csv", "exact_match.csv"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class _Prepared:
    """What the command works on, checked before a model is loaded."""

    saved: SavedAdapter
    other: SavedAdapter | None
    batches: list[dict[str, Any]]
    fit_batches: list[dict[str, Any]]
    identity: dict[str, Any]
    task: TaskUnderInterventions | None


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status: 2 after a user's mistake."""
    parser = CommandParser("intervene", __doc__)
    parser.add_argument("folder", type=user_path, metavar="RUN_OR_ADAPTER_DIR")
    parser.add_argument(
        "--data",
        type=user_path,
        help="rows to fit to and measure on: a chat file or configuration (default: word problems)",
    )
    parser.add_argument("--rows", type=int, default=64, help="number of rows to measure on (default: 64)")
    parser.add_argument("--fit-rows", type=int, default=128, help="number of other rows to fit to (default: 128)")
    parser.add_argument("--level", choices=[*LEVELS, "all"], default="all", help="form of C (default: all)")
    parser.add_argument("--layers", type=int, nargs="+", help="numbers of the layers to intervene on (default: all)")
    parser.add_argument("--by-layer", action="store_true", help="intervene on one layer at a time, too")
    parser.add_argument("--layer-rows", type=int, default=8, help="number of rows for --by-layer (default: 8)")
    parser.add_argument("--against", type=user_path, metavar="DIR", help="another adapter, compared by difficulty")
    parser.add_argument("--task", type=user_path, metavar="FILE", help="configuration of an evaluation, for accuracy")
    parser.add_argument("--base", type=expand_home, help="base model (default: the one that the adapter names)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of the model")
    parser.add_argument("--out", type=user_path, metavar="DIR", help="default: interventions/ in RUN_OR_ADAPTER_DIR")
    parser.add_overwrite()
    options = parser.parse_args(arguments)
    options.out = options.out or options.folder / "interventions"
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    prepared = _prepare(options)
    levels: Sequence[Level] = LEVELS if options.level == "all" else (options.level,)
    other = _against(prepared, options.dtype)
    model = _load(prepared.saved, options.dtype)
    fits = fit(model, prepared.fit_batches, prepared.batches, layers=options.layers, progress=progress)
    print(tables.layer_table(fits, levels[-1]))
    scores = measure(model, prepared.batches, fits, conditions(levels), progress=progress)
    results = {**prepared.identity, "layers": layer_rows(fits)} | _report(scores, other, fits, levels[-1], options.out)
    write_csv(options.out / "layers.csv", results["layers"])
    write_json(options.out / "interventions.json", results)
    if options.by_layer:
        batches = list(islice(prepared.batches, -(-options.layer_rows // len(prepared.batches[0]["input_ids"]))))
        results["by_layer"] = _by_layer(model, batches, fits, levels[-1], options.out / BY_LAYER)
        write_json(options.out / "interventions.json", results)
    if prepared.task is not None:
        results["exact_match"] = exact_match_rows(prepared.task.run(model, fits), prepared.task.comparisons())
        write_csv(options.out / EXACT_MATCH, results["exact_match"])
        write_json(options.out / "interventions.json", results)
        print(f"\n{tables.exact_match_table(results['exact_match'])}")
    print(f"\ntables, figure and interventions.json: {options.out}")


def _prepare(options: argparse.Namespace) -> _Prepared:
    """Check the options; read the adapters and the data."""
    optional = [BY_LAYER] * options.by_layer + [EXACT_MATCH] * (options.task is not None)
    for name in (*FILES, *optional):
        check_output(options.out / name, "out", options.overwrite)
    if options.layer_rows < 1:
        raise UsageError(f"--layer-rows must be at least 1, got {options.layer_rows}.")
    evaluation = read_evaluation(options.task, "task") if options.task is not None else None
    saved = SavedAdapter.find(options.folder, options.base)
    _check_branches(saved)
    other = SavedAdapter.find(options.against, options.base) if options.against is not None else None
    if other is not None and other.base != saved.base:
        raise UsageError(f"--against must be an adapter of the same base, {saved.base}, got one of {other.base}.")
    data = separate_rows(saved.base, chat_rows(options.data), options.rows, options.fit_rows, saved.chat_template)
    data.setup()
    batches = list(data.val_dataloader())
    fit_batches = list(islice(data.train_dataloader(), -(-options.fit_rows // data.batch_size)))
    identity = {
        "adapter": str(saved.folder),
        "adapter_sha256": saved.digest(),
        "base": saved.base,
        "dtype": options.dtype,
        "data": json.loads(data.state_dict()["identity"]),
        "rows": {"measured": options.rows, "fit": sum(len(batch["input_ids"]) for batch in fit_batches)},
        "measured_data": digits(total(map(fingerprint, batches))),
        "fit_data": digits(total(map(fingerprint, fit_batches))),
        "layers_chosen": options.layers,
    }
    if other is not None:
        identity |= {"against": str(other.folder), "against_sha256": other.digest()}
    task = None
    if evaluation is not None:
        names = ("base", "dtype", "adapter_sha256", "fit_data", "layers_chosen")
        model = {name: identity[name] for name in names}
        folder = options.out / "exact_match"
        task = TaskUnderInterventions(evaluation, saved.tokenizer(), folder, model, load_config(saved.base))
    options.out.mkdir(parents=True, exist_ok=True)
    return _Prepared(saved, other, batches, fit_batches, identity, task)


def _check_branches(saved: SavedAdapter) -> None:
    """Raise ``UsageError`` for an adapter whose branches have no activation, or lie in experts."""
    settings = saved.settings
    if can_intervene(make_config(saved.folder, settings)):
        return
    if not settings.get("target_parameters"):
        raise UsageError(
            f"{saved.folder}: peft_type {settings['peft_type']} has no activation to intervene on; give a CeRA, "
            "Houlsby or parallel adapter."
        )
    raise UsageError(
        f"{saved.folder}: target_parameters {settings['target_parameters']}: interventions on the branches of "
        "experts are not supported."
    )


def _load(saved: SavedAdapter, dtype: str) -> PeftModel:
    print(f"loading {saved.base} with {saved.folder}", file=sys.stderr, flush=True)
    return saved.load(getattr(torch, dtype))


def _against(prepared: _Prepared, dtype: str) -> np.ndarray | None:
    """Return the NLL of each answer token under the other adapter, if there is one, which is not kept in memory."""
    if prepared.other is None:
        return None
    return adapter_nll(_load(prepared.other, dtype), prepared.batches, progress, "the other adapter")


def _report(
    scores: TokenScores, other: np.ndarray | None, fits: dict[str, LayerFit], level: Level, out: Path
) -> dict[str, Any]:
    """Print and write what all tokens and the deciles show; return it as JSON values."""
    summarizer = Summarizer(scores)
    summaries, deciles = summarizer.conditions(), summarizer.deciles(other)
    shown = ["none", f"affine {level}", f"curvature {level}"]
    tokens, problems = len(scores.problem), len(np.unique(scores.problem))
    fit_tokens = next(iter(fits.values())).tokens
    print(f"\n{tables.condition_table(summaries)}\n\n{tables.convention(tokens, problems, fit_tokens, RESAMPLES)}")
    print(f"\n{tables.decile_table(deciles, shown)}\n\nDeciles of the answer tokens by their NLL without the adapter.")
    rows = {"conditions": condition_rows(summaries), "deciles": decile_rows(deciles)}
    for name, lines in rows.items():
        write_csv(out / f"{name}.csv", lines)
    figure(summaries, deciles, shown).savefig(out / "interventions.png")
    counts = {"answer_tokens": tokens, "problems": problems, "fit_tokens": fit_tokens, "resamples": RESAMPLES}
    return {**counts, **rows}


def _by_layer(
    model: PeftModel, batches: list[dict[str, Any]], fits: dict[str, LayerFit], level: Level, path: Path
) -> list[dict[str, Any]]:
    """Intervene on one layer at a time, and write the rows as they come."""
    rows: list[dict[str, Any]] = []
    for name in progress(list(fits), "one layer at a time", "layer"):
        scores = measure(model, batches, {name: fits[name]}, conditions([level]))
        summaries = Summarizer(scores).conditions()[1:]  # without the whole adapter
        rows += [{"layer": name, **row} for row in condition_rows(summaries)]
        write_csv(path, rows)
    problems, tokens = len(np.unique(scores.problem)), len(scores.problem)
    print(
        f"\n{tables.layer_costs_table(rows)}\n\nIn one layer at a time: {tokens} answer tokens of {problems} problems."
    )
    return rows
