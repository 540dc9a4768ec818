"""Contamination: how much of an evaluation set is in a training set, to the word and in n-grams.

    python -m cera.evaluation.overlap --train configs/smol_gsm8k.yaml --test configs/eval_gsm8k.yaml
    python -m cera.evaluation.overlap --train train.jsonl --test test.jsonl --n 8 --out overlap.json

Each set is a configuration (of a run or of an evaluation) or a file. What is counted are rows of the evaluation set:
those that are in the training set as they are, those of which some n-gram is, and those of which at least a share of
the n-grams is; then the same with every number taken for the same one, which finds a template that was filled again.
The whole training set counts, with the rows that a run holds out of it for validation.
"""

import argparse
import dataclasses
import json
import re
import sys
import textwrap
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from tqdm import tqdm

from cera.cli.compose import compose
from cera.data import ChatDataset, DataError, Rows
from cera.data.chat import Message
from cera.data.datasets import question_and_answer
from cera.data.rows import LOADERS
from cera.evaluation.tasks import Task
from cera.runs.files import replacing

FIELDS = ("question", "answer", "both")
SHOWN = 10
"""How many pairs of rows are shown."""
WIDTH = 400
"""Characters of a row that are shown."""

_TOKEN = re.compile(
    r"(?:[-−–]\s*)?"  # noqa: RUF001  # the minus of a number
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\w)\.\d+)"  # a number
    r"|[^\W\d_]+"  # a word
    r"|[+^=<>]|[*/](?=\s*\.?\d)"  # a sign
)
_NUMBER = "0"


# --- the measure -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """How much of one row of the evaluation set is in the training set.

    Attributes:
        exact: Whether a training row has the same tokens.
        share: Share of the row's n-grams, in [0, 1], that are in the training set, in whichever rows.
        nearest: The training row that has most of them, an exact one or the first of several; ``None`` if none has any.
        nearest_share: Share of the row's n-grams that are in ``nearest``.
        nearest_text: That row, as it was given.
    """

    exact: bool = False
    share: float = 0.0
    nearest: int | None = None
    nearest_share: float = 0.0
    nearest_text: str | None = None


@dataclass(frozen=True)
class Overlap:
    """What of an evaluation set is in a training set.

    Attributes:
        n: Length of the n-grams, in tokens.
        threshold: Share of a row's n-grams from which on it is flagged.
        train_rows: How many rows of the training set were read.
        as_written: One match for each row of the evaluation set.
        numbers_folded: The same, with each number taken for the same one.
    """

    n: int
    threshold: float
    train_rows: int
    as_written: list[Match]
    numbers_folded: list[Match]

    def counts(self) -> dict[str, int]:
        """Rows of the evaluation set, by what of them is in the training set."""
        kinds: dict[str, Callable[[Match], bool]] = {
            "exact": lambda match: match.exact,
            f"any {self.n}-gram": lambda match: match.share > 0,
            f"{self.n}-gram share >= {self.threshold:g}": lambda match: match.share >= self.threshold,
        }
        forms = {"": self.as_written, "numbers folded: ": self.numbers_folded}
        return {form + kind: sum(map(test, of)) for form, of in forms.items() for kind, test in kinds.items()}

    def flagged(self) -> list[int]:
        """Rows with at least the threshold in the training set, in either form; those with most of it first.

        An exact match is always among them, for all of its n-grams are in one row.
        """
        rows = [row for row, match in enumerate(self.numbers_folded) if match.share >= self.threshold]
        return sorted(rows, key=self._degree, reverse=True)

    def _degree(self, row: int) -> tuple[float, ...]:
        found = [self.as_written[row], self.numbers_folded[row]]
        return (*(m.exact for m in found), *(m.share for m in found), *(m.nearest_share for m in found))


def tokens(text: str) -> tuple[str, ...]:
    """A text's words, numbers and signs, without what does not matter to who copies: case, punctuation and spaces.

    As in the analysis of GPT-3 (Brown et al. 2020, App. C), but for the signs of mathematics, without which
    ``z^4 + z^2`` would be ``z^4 - z^2``: ``+ ^ = < >`` stay, and ``*`` and ``/`` before a number; a minus before a
    number belongs to it. ``1,000`` and ``3.5`` are one number each, ``5km`` is ``5 km``, and compatible characters
    are the same (NFKC). Numbers in words stay words.
    """
    found = _TOKEN.findall(unicodedata.normalize("NFKC", text).replace("\N{FRACTION SLASH}", "/").casefold())
    return tuple(_number(token) if token[-1].isdecimal() else token for token in found)


def _number(token: str) -> str:
    digits = token.lstrip("-−–").lstrip().replace(",", "")  # noqa: RUF001
    sign = "-" if token[0] in "-−–" else ""  # noqa: RUF001
    return f"{sign}0{digits}" if digits[0] == "." else f"{sign}{digits}"


def fold_numbers(words: Sequence[str]) -> tuple[str, ...]:
    """Tokens with each number, and its minus, replaced by ``0``: what all fillings of a template have in common."""
    return tuple(_NUMBER if word[-1].isdecimal() else word for word in words)


def overlap(train: Iterable[str], test: Sequence[str], n: int = 13, threshold: float = 0.5) -> Overlap:
    """Look for the rows of an evaluation set, and for their n-grams, in a training set.

    The n-grams are those of ``tokens``. Brown et al. (2020, App. C) take n between 8 and 13, and call a row dirty if
    one of its n-grams is in the training set. A row with fewer than n tokens is one n-gram, all of it, as it is
    there; one without tokens matches nothing. A repeated n-gram counts as often as the row has it.

    Args:
        train: Read once, row by row; what is held in memory grows with ``test`` alone (64-bit hashes of its n-grams,
            and the nearest training row of each row).
        test: The rows of the evaluation set.
        n: At least 1.
        threshold: In (0, 1].

    Raises:
        ValueError: ``n`` or ``threshold`` is out of its range.
    """
    _check(n, threshold)
    words = [tokens(text) for text in test]
    written, folded = _Index(words, n), _Index([fold_numbers(row) for row in words], n)
    count = 0
    for number, text in enumerate(train):
        row = tokens(text)
        written.look_in(number, row, text)
        folded.look_in(number, fold_numbers(row), text)
        count += 1
    return Overlap(n, threshold, count, written.matches(), folded.matches())


def _check(n: int, threshold: float) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold:g}.")


class _Index:
    """The n-grams of the evaluation set, with the rows that have them, and what was found of them so far."""

    def __init__(self, test: Sequence[tuple[str, ...]], n: int) -> None:
        self.sizes = [max(len(row) - n + 1, 1) for row in test]
        self.whole: dict[int, list[int]] = defaultdict(list)
        self.having: dict[int, list[int]] = defaultdict(list)  # a row stands there as often as it has the n-gram
        lengths: dict[str, set[int]] = defaultdict(set)
        for number, row in enumerate(test):
            if not row:
                continue
            length = min(n, len(row))
            self.whole[hash(row)].append(number)
            for start in range(len(row) - length + 1):
                self.having[hash(row[start : start + length])].append(number)
                lengths[row[start]].add(length)
        # short rows are looked for only where their first token stands, not at every length everywhere
        self.lengths = {token: tuple(of) for token, of in lengths.items()}
        self.seen: set[int] = set()
        self.nearest: dict[int, tuple[bool, int, int, str]] = {}  # exact, n-grams, number and text of the training row

    def look_in(self, number: int, row: tuple[str, ...], text: str) -> None:
        """Note what training row ``number`` has in common with the evaluation set."""
        grams = {gram for gram in self._grams(row) if gram in self.having}
        if not grams:
            return
        self.seen |= grams
        exact = set(self.whole.get(hash(row), ()))
        for mine, common in Counter(of for gram in grams for of in self.having[gram]).items():
            found = (mine in exact, common)
            if found > self.nearest.get(mine, (False, 0))[:2]:
                self.nearest[mine] = (*found, number, text)

    def _grams(self, row: tuple[str, ...]) -> Iterator[int]:
        for start, token in enumerate(row):
            for length in self.lengths.get(token, ()):
                if start + length <= len(row):
                    yield hash(row[start : start + length])

    def matches(self) -> list[Match]:
        """What was found of each row."""
        found = Counter(number for gram in self.seen for number in self.having[gram])
        return [self._match(number, found[number]) for number in range(len(self.sizes))]

    def _match(self, number: int, found: int) -> Match:
        if number not in self.nearest:
            return Match()
        exact, common, nearest, text = self.nearest[number]
        return Match(exact, found / self.sizes[number], nearest, common / self.sizes[number], text)


# --- what is compared ------------------------------------------------------------------------------------------------


@dataclass
class QuestionsAndAnswers(ChatDataset):
    """A file with one of the usual pairs of columns, or with conversations."""

    pairs: ClassVar = (
        ("question", "answer"),
        ("problem", "solution"),
        ("problem", "answer"),
        ("instruction", "output"),
    )
    columns: ClassVar = (*pairs, ("messages",), ("conversations",))

    def messages(self, row: dict[str, Any]) -> list[Message] | None:
        for question, answer in self.pairs:
            if row.get(question) is not None and row.get(answer) is not None:
                return question_and_answer(row[question], row[answer])
        return super().messages(row)


@dataclass
class Texts:
    """The texts of a set's rows, to read once.

    Args:
        source: The set.
        field: What of a row: the question is what its user turns say, the answer what its assistant turns say.

    Attributes:
        skipped: How many malformed rows were passed over so far.
    """

    source: ChatDataset
    field: str
    skipped: int = dataclasses.field(default=0, init=False)

    def open(self) -> datasets.Dataset | datasets.IterableDataset:
        """The raw rows. Raises ``DataError`` if the hub does not have them, or is out of reach."""
        try:
            return self.source.load(streaming=True)
        except OSError as error:
            raise _unreachable(self.source, error) from error

    def read(self, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
        """The text of each raw row; empty if malformed or filtered out, so that numbers stay right."""
        for raw in rows:
            try:
                messages = self.source.parse(raw) or []
            except ValueError:
                messages, self.skipped = [], self.skipped + 1
            yield text_of(messages, self.field)


def text_of(messages: Sequence[Message], field: str) -> str:
    """What is compared of a conversation; system turns, which many rows share, never are."""
    roles = {"question": ("user",), "answer": ("assistant",), "both": ("user", "assistant")}[field]
    return "\n".join(message["content"] for message in messages if message["role"] in roles)


def find(path: Path, keys: Sequence[str], files: Sequence[str] | None = None) -> ChatDataset | Task:
    """The set that a configuration describes, or that a file is; checked, and not yet read.

    Args:
        path: A .yaml file, or one of rows.
        keys: Where a configuration may have the set, such as ``"data.dataset"``; the first that is there is taken.
        files: Local files, in place of those that the configuration names, or of the hub's.

    Raises:
        DataError: There is no such file, or it is not of that form.
        ValueError: The configuration is wrong.
    """
    if path.suffix in LOADERS:
        if files:
            raise DataError(f"{path} is a file itself: local files go with a configuration.")
        found: ChatDataset | Task = QuestionsAndAnswers(data_files=str(path))
    elif path.suffix in (".yaml", ".yml"):
        found = _configured(path, keys)
    else:
        raise DataError(f"{path} is neither a configuration (.yaml) nor a file of rows ({', '.join(LOADERS)}).")
    if files:
        if not isinstance(found, Rows):
            raise DataError(f"{type(found).__name__} reads no files: it makes its problems itself.")
        found.data_files = list(files)
    found.check()
    return found


def _configured(path: Path, keys: Sequence[str]) -> ChatDataset | Task:
    configuration = compose(path)
    for key in keys:
        part: Any = configuration
        for name in key.split("."):
            part = part.get(name) if isinstance(part, dict) else None
        if part is not None:
            return _made(part, f"{path}: {key}")
    raise DataError(f"{path} describes no set of rows: it has no {' and no '.join(keys)}.")


def _made(part: Any, where: str) -> ChatDataset | Task:
    set_parsing_settings(subclasses_enabled=[ChatDataset, Task])  # dataclasses, of which a configuration names one
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--set", type=ChatDataset | Task)
    try:
        return parser.instantiate(parser.parse_object({"set": part})).set
    except (ArgumentError, ValueError) as error:
        raise DataError(f"{where} is no dataset and no task: {error}") from error


def evaluation_texts(source: ChatDataset | Task, field: str) -> list[str]:
    """What is compared of each row of an evaluation set, in order.

    Raises:
        DataError: A row is malformed, or there is none: an overlap with less than the whole set would look smaller.
    """
    try:
        if isinstance(source, Task):
            asked = [question_and_answer(problem.question, problem.gold) for problem in source.problems()]
            found = [text_of(messages, field) for messages in asked]
        else:
            texts = Texts(source, field)
            found = list(texts.read(source.load(streaming=True)))
            if texts.skipped:
                raise DataError(f"{_name(source)}: {texts.skipped} of {len(found)} rows are malformed.")
    except OSError as error:
        raise _unreachable(source, error) from error
    if not any(map(tokens, found)):
        raise DataError(f"{_name(source)} has no {field} with a word or number in it.")
    return found


def _name(source: Rows | Task) -> str:
    if not isinstance(source, Rows):
        return type(source).__name__
    return ", ".join(source.files()) or source.path or type(source).__name__


def _unreachable(source: Rows | Task, error: OSError) -> DataError:
    return DataError(f"{_name(source)} cannot be read ({error}); --train-files and --test-files take local files.")


# --- the command -----------------------------------------------------------------------------------------------------


def table(found: Overlap) -> str:
    """The counts as text, with their share of the evaluation set."""
    total = len(found.as_written)
    counts = {"rows": total, **found.counts()}
    width = max(map(len, counts))
    return "\n".join(f"{kind:<{width}} {count:>8,} {count / total:>8.2%}" for kind, count in counts.items())


def pairs(found: Overlap, test: Sequence[str], most: int = SHOWN) -> str:
    """The flagged rows with most in common with the training set, each with its nearest training row."""
    shown = []
    for row in found.flagged()[:most]:
        match, folded = found.as_written[row], found.numbers_folded[row]
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


def report(found: Overlap, test: Sequence[str]) -> dict[str, Any]:
    """What was found, as plain data, with all flagged rows and the training rows nearest to them."""
    return {
        "n": found.n,
        "threshold": found.threshold,
        "train_rows": found.train_rows,
        "test_rows": len(test),
        "counts": found.counts(),
        "flagged": [
            {
                "row": row,
                "text": test[row],
                "as_written": dataclasses.asdict(found.as_written[row]),
                "numbers_folded": dataclasses.asdict(found.numbers_folded[row]),
            }
            for row in found.flagged()
        ],
    }


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status, 2 after a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m cera.evaluation.overlap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = "a configuration, or a file with question/answer, problem/answer, instruction/output or messages"
    parser.add_argument("--train", type=Path, required=True, help=f"training set: {kinds}")
    parser.add_argument("--test", type=Path, required=True, help="evaluation set: likewise")
    parser.add_argument("--train-files", nargs="+", metavar="FILE", help="the training configuration's data_files")
    parser.add_argument("--test-files", nargs="+", metavar="FILE", help="the evaluation configuration's data_files")
    parser.add_argument("--field", choices=FIELDS, default="question", help="what is compared (default: question)")
    parser.add_argument("--n", type=int, default=13, help="length of the n-grams, in words (default: 13)")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="share of n-grams from which a row is flagged (default: 0.5)"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the figures and all flagged rows")
    try:
        return _compare(parser.parse_args(arguments))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _compare(options: argparse.Namespace) -> int:
    _check(options.n, options.threshold)
    if options.out and (options.out.is_dir() or not options.out.absolute().parent.is_dir()):
        raise ValueError(f"--out must be a file in a directory that exists, got {options.out}.")
    train = find(options.train, ["data.dataset"], options.train_files)
    if isinstance(train, Task):
        raise DataError(f"{options.train}: data.dataset is a task; expected a dataset.")
    source = find(options.test, ["evaluation.task", "data.dataset"], options.test_files)
    test = evaluation_texts(source, options.field)
    texts = Texts(train, options.field)
    rows = texts.open()
    bar = tqdm(rows, total=len(rows) if isinstance(rows, datasets.Dataset) else None, desc="training set", unit=" rows")
    found = overlap(texts.read(bar), test, options.n, options.threshold)
    if texts.skipped == found.train_rows:
        raise DataError(f"{_name(train)}: all {found.train_rows} rows are malformed; there is nothing to compare with.")
    named = {"train": _name(train), "test": _name(source), "field": options.field}
    if shown := pairs(found, test):
        print(f"\n{shown}")
    skipped = f", of which {texts.skipped:,} malformed and skipped" if texts.skipped else ""
    print(f"\n{named['test']} in {named['train']} ({found.train_rows:,} rows{skipped}), by the {options.field}\n")
    print(table(found))
    if options.out:
        everything = {**named, "train_skipped": texts.skipped, **report(found, test)}
        with replacing(options.out) as unfinished:
            unfinished.write_text(json.dumps(everything, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"\n{len(found.flagged()):,} flagged rows: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
