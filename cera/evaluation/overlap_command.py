"""The command ``cera overlap``."""

import argparse
import dataclasses
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from cera.cli.command_parser import CommandParser
from cera.cli.configured_rows import CONFIGURATIONS, configured
from cera.cli.outputs import check_outputs
from cera.cli.paths import expand_home, user_path
from cera.cli.run_command import run_command
from cera.cli.tables import table
from cera.data import ChatDataset, DataError, Rows
from cera.data.rows import LOADERS
from cera.evaluation.overlap import Match, Overlap, check_settings, overlap
from cera.evaluation.overlap_sets import FIELDS, QuestionsAndAnswers, Texts, evaluation_texts, name_of
from cera.evaluation.tasks import Task
from cera.progress import StatusBar
from cera.runs.files import replacing

DESCRIPTION = """Report how much of an evaluation set is in a training set.

    cera overlap --train configs/smol_gsm8k.yaml --test configs/eval_gsm8k.yaml
    cera overlap --train train.jsonl --test test.jsonl --n 8 --out overlap.json

Each set is a configuration (of a run or of an evaluation) or a file. Counted are the rows of the evaluation set that
are in the training set as a whole, those that share an n-gram with it, and those that share at least a given part of
their n-grams; then the same with all numbers taken as equal, which finds a template that was filled in again. The whole
training set counts, including the rows that a run holds out for validation.
"""
SHOWN = 10
"""Maximum number of pairs of rows to print."""
WIDTH = 400
"""Maximum number of characters of a row to print."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    parser = CommandParser("overlap", DESCRIPTION)
    kinds = "a configuration, or a file with question/answer, problem/answer, instruction/output or messages"
    parser.add_argument("--train", type=user_path, required=True, help=f"training set: {kinds}")
    parser.add_argument("--test", type=user_path, required=True, help=f"evaluation set: {kinds}")
    parser.add_argument(
        "--train-files", nargs="+", type=expand_home, metavar="FILE", help="the training configuration's data_files"
    )
    parser.add_argument(
        "--test-files", nargs="+", type=expand_home, metavar="FILE", help="the evaluation configuration's data_files"
    )
    parser.add_argument("--field", choices=FIELDS, default="question", help="text to compare (default: question)")
    parser.add_argument("--n", type=int, default=13, help="length of the n-grams, in words (default: 13)")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="share of n-grams at which a row is flagged (default: 0.5)"
    )
    parser.add_argument("--out", type=user_path, help="JSON file for the figures and all flagged rows")
    parser.add_overwrite()
    options = parser.parse_args(arguments)
    return run_command(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> None:
    check_settings(options.n, options.threshold)
    check_outputs(options, "out")
    train = find_set(options.train, ["data.dataset"], options.train_files)
    if isinstance(train, Task):
        raise DataError(f"{options.train}: data.dataset is a task; expected a dataset.")
    source = find_set(options.test, ["evaluation.task", "data.dataset"], options.test_files)
    test = evaluation_texts(source, options.field)
    texts = Texts(train, options.field)
    rows = texts.open()
    bar = StatusBar(rows, "training set", "rows", total=len(rows) if isinstance(rows, datasets.Dataset) else None)
    result = overlap(texts.read(bar), test, options.n, options.threshold)
    if texts.skipped == result.train_rows:
        raise DataError(
            f"{name_of(train)}: all {result.train_rows} rows are malformed; nothing is left to compare with."
        )
    named = {"train": name_of(train), "test": name_of(source), "field": options.field}
    if shown := pairs(result, test):
        print(f"\n{shown}")
    skipped = f", of which {texts.skipped:,} malformed and skipped" if texts.skipped else ""
    print(f"\n{named['test']} in {named['train']} ({result.train_rows:,} rows{skipped}), by the {options.field}\n")
    print(overlap_table(result))
    if options.out:
        everything = {**named, "train_skipped": texts.skipped, **report(result, test)}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(options.out) as unfinished:
            unfinished.write_text(json.dumps(everything, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"\n{len(result.flagged()):,} flagged rows: {options.out}")


def find_set(path: Path, keys: Sequence[str], files: Sequence[str] | None = None) -> ChatDataset | Task:
    """Return the set that a configuration or a file describes; it is checked, but not read.

    Args:
        path: A .yaml file, or a file of rows.
        keys: Keys under which a configuration may have the set, such as ``"data.dataset"``; the first match counts.
        files: Local files to read in place of the configuration's files or hub path.

    Raises:
        DataError: There is no such file, or it has another form.
        ValueError: The configuration is wrong.
    """
    if path.suffix in LOADERS:
        if files:
            raise DataError(f"{path} is a file itself: local files go with a configuration.")
        source: ChatDataset | Task = QuestionsAndAnswers(data_files=str(path))
    elif path.suffix in CONFIGURATIONS:
        source = configured(path, keys, ChatDataset, Task)
    else:
        raise DataError(f"{path} is neither a configuration (.yaml) nor a file of rows ({', '.join(LOADERS)}).")
    if files:
        if not isinstance(source, Rows):
            raise DataError(f"{type(source).__name__} reads no files: it generates its problems.")
        source.data_files = list(files)
    source.check()
    return source


def overlap_table(result: Overlap) -> str:
    """Return the number of rows with each kind of match, and their share of the evaluation set."""
    total = len(result.as_written)
    counts = {"rows": total, **result.counts()}
    return table([[kind, f"{n:,}", f"{n / total:.2%}"] for kind, n in counts.items()], ["", "", ""], verbatim=(1, 2))


def pairs(result: Overlap, test: Sequence[str], most: int = SHOWN) -> str:
    """Return the flagged rows with the largest overlap as text, each with its nearest training row."""
    shown = []
    for row in result.flagged()[:most]:
        match, folded = result.as_written[row], result.numbers_folded[row]
        nearest = match if match.nearest_share >= folded.nearest_share else folded
        shown.append(
            f"--- row {row}: {_described(match)}; numbers folded: {_described(folded)}\n"
            f"test  {row}: {_shortened(test[row])}\ntrain {nearest.nearest}: {_shortened(nearest.nearest_text or '')}"
        )
    return "\n".join(shown)


def _described(match: Match) -> str:
    return f"{'exact, ' if match.exact else ''}{match.share:.0%} ({match.nearest_share:.0%} in one row)"


def _shortened(text: str) -> str:
    return textwrap.shorten(text, WIDTH, placeholder=" ...")


def report(result: Overlap, test: Sequence[str]) -> dict[str, Any]:
    """Return the result as JSON values, with all flagged rows and the training rows nearest to them."""
    return {
        "n": result.n,
        "threshold": result.threshold,
        "train_rows": result.train_rows,
        "test_rows": len(test),
        "counts": result.counts(),
        "flagged": [
            {
                "row": row,
                "text": test[row],
                "as_written": dataclasses.asdict(result.as_written[row]),
                "numbers_folded": dataclasses.asdict(result.numbers_folded[row]),
            }
            for row in result.flagged()
        ],
    }
