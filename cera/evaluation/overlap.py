"""Contamination: how much of an evaluation set is in a training set, word for word and in n-grams.

Three kinds of rows of the evaluation set are counted: those that are in the training set as a whole, those of which
some n-gram is, and those of which at least a given share of the n-grams is. The same is counted with all numbers taken
as equal, which finds a template that was filled in again.

Example:
    >>> overlap(["Tom has 2 red apples."], ["Tom has 3 red apples."], n=3).counts()["numbers folded: exact"]
    1
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

_TOKEN = re.compile(
    r"(?:[-−–]\s*)?"  # noqa: RUF001  # the minus of a number
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\w)\.\d+)"  # a number
    r"|[^\W\d_]+"  # a word
    r"|[+^=<>]|[*/](?=\s*\.?\d)"  # a sign
)
RowCount = tuple[int, int]
"""A row of the evaluation set, and how often it has an n-gram."""
_FOLDED_NUMBER = "0"
"""Stands for any number where numbers are folded."""


@dataclass(frozen=True)
class Match:
    """The part of one row of the evaluation set that is in the training set.

    Attributes:
        exact: Whether a training row has the same tokens.
        share: Share of the row's n-grams, in [0, 1], that are anywhere in the training set.
        nearest: Number of the training row with most of them (an exact match first, then the first of several);
            ``None`` if no row has any.
        nearest_share: Share of the row's n-grams that are in ``nearest``.
        nearest_text: The text of that row.
    """

    exact: bool = False
    share: float = 0.0
    nearest: int | None = None
    nearest_share: float = 0.0
    nearest_text: str | None = None


@dataclass(frozen=True)
class Overlap:
    """The part of an evaluation set that is in a training set.

    Attributes:
        n: Length of the n-grams, in tokens.
        threshold: Smallest share of a row's n-grams in the training set at which the row is flagged.
        train_rows: Number of rows of the training set.
        as_written: The match of each row of the evaluation set.
        numbers_folded: The same, with all numbers taken as equal.
    """

    n: int
    threshold: float
    train_rows: int
    as_written: list[Match]
    numbers_folded: list[Match]

    def counts(self) -> dict[str, int]:
        """Return the number of rows of the evaluation set with each kind of match."""
        kinds: dict[str, Callable[[Match], bool]] = {
            "exact": lambda match: match.exact,
            f"any {self.n}-gram": lambda match: match.share > 0,
            f"{self.n}-gram share >= {self.threshold:g}": lambda match: match.share >= self.threshold,
        }
        forms = {"": self.as_written, "numbers folded: ": self.numbers_folded}
        return {
            form + kind: sum(map(has_kind, matches))
            for form, matches in forms.items()
            for kind, has_kind in kinds.items()
        }

    def flagged(self) -> list[int]:
        """Return the rows whose share reaches the threshold in either form, those with the largest overlap first.

        An exact match is always among them, since all of its n-grams are in one row.
        """
        rows = [row for row, match in enumerate(self.numbers_folded) if match.share >= self.threshold]
        return sorted(rows, key=self._degree, reverse=True)

    def _degree(self, row: int) -> tuple[float, ...]:
        forms = [self.as_written[row], self.numbers_folded[row]]
        return (*(m.exact for m in forms), *(m.share for m in forms), *(m.nearest_share for m in forms))


def tokens(text: str) -> tuple[str, ...]:
    """Return the words, numbers and signs of a text, without case, punctuation and spaces.

    This follows the analysis of GPT-3 (Brown et al. 2020, App. C), but keeps the signs of mathematics, without which
    ``z^4 + z^2`` would equal ``z^4 - z^2``: ``+ ^ = < >`` stay, and ``*`` and ``/`` before a number; a minus before a
    number belongs to it. ``1,000`` and ``3.5`` are one number each, ``5km`` is ``5 km``, and compatible characters
    are the same (NFKC). Numbers in words stay words.
    """
    normalized = unicodedata.normalize("NFKC", text).replace("\N{FRACTION SLASH}", "/").casefold()
    return tuple(_number(token) if token[-1].isdecimal() else token for token in _TOKEN.findall(normalized))


def _number(token: str) -> str:
    digits = token.lstrip("-−–").lstrip().replace(",", "")  # noqa: RUF001
    sign = "-" if token[0] in "-−–" else ""  # noqa: RUF001
    return f"{sign}0{digits}" if digits[0] == "." else f"{sign}{digits}"


def fold_numbers(words: Sequence[str]) -> tuple[str, ...]:
    """Return the tokens with each number, and its minus, replaced by ``0``; all fillings of a template agree."""
    return tuple(_FOLDED_NUMBER if word[-1].isdecimal() else word for word in words)


def overlap(train: Iterable[str], test: Sequence[str], n: int = 13, threshold: float = 0.5) -> Overlap:
    """Find the rows of an evaluation set, and their n-grams, in a training set.

    The n-grams consist of ``tokens``. Brown et al. (2020, App. C) take n between 8 and 13, and call a row dirty if one
    of its n-grams is in the training set. A row with fewer than n tokens is a single n-gram; a row without tokens
    matches nothing. A repeated n-gram counts as often as the row has it.

    Args:
        train: The rows of the training set, read once. Memory grows with ``test`` alone: it holds 64-bit hashes of its
            n-grams, and the nearest training row of each row.
        test: The rows of the evaluation set.
        n: Length of the n-grams in tokens, at least 1.
        threshold: Share of n-grams at which a row is flagged, in (0, 1].

    Raises:
        ValueError: ``n`` or ``threshold`` is out of its range.
    """
    check_settings(n, threshold)
    words = [tokens(text) for text in test]
    written, folded = _Index(words, n), _Index([fold_numbers(row) for row in words], n)
    count = 0
    for number, text in enumerate(train):
        row = tokens(text)
        written.add(number, row, text)
        folded.add(number, fold_numbers(row), text)
        count += 1
    return Overlap(n, threshold, count, written.matches(), folded.matches())


def check_settings(n: int, threshold: float) -> None:
    """Raise ``ValueError`` if the length of the n-grams or the threshold is out of its range; see ``overlap``."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold:g}.")


class _Index:
    """The n-grams of the evaluation set, the rows that have them, and the matches so far."""

    def __init__(self, test: Sequence[tuple[str, ...]], n: int) -> None:
        self.sizes = [max(len(row) - n + 1, 1) for row in test]
        self.whole: dict[int, list[int]] = defaultdict(list)
        self.rows_with: dict[int, list[RowCount]] = defaultdict(list)
        lengths: dict[str, set[int]] = defaultdict(set)
        for number, row in enumerate(test):
            if not row:
                continue
            length = min(n, len(row))
            self.whole[hash(row)].append(number)
            starts = range(len(row) - length + 1)
            once = (number, 1)  # one object for all n-grams
            for gram, times in Counter(hash(row[start : start + length]) for start in starts).items():
                self.rows_with[gram].append(once if times == 1 else (number, times))
            for token in {row[start] for start in starts}:
                lengths[token].add(length)
        # by first token, so that the n-grams of short rows are not hashed at every position
        self.lengths = {token: tuple(sizes) for token, sizes in lengths.items()}
        self.seen: set[int] = set()
        self.nearest: dict[int, tuple[bool, int, int, str]] = {}  # exact, n-grams, number and text of the training row

    def add(self, number: int, row: tuple[str, ...], text: str) -> None:
        """Record what training row ``number`` has in common with the evaluation set."""
        grams = {gram for gram in self._grams(row) if gram in self.rows_with}
        if not grams:
            return
        self.seen |= grams
        exact = set(self.whole.get(hash(row), ()))
        for test_row, common in self._counts(grams).items():
            match = (test_row in exact, common)
            if match > self.nearest.get(test_row, (False, 0))[:2]:
                self.nearest[test_row] = (*match, number, text)

    def _grams(self, row: tuple[str, ...]) -> Iterator[int]:
        for start, token in enumerate(row):
            for length in self.lengths.get(token, ()):
                if start + length <= len(row):
                    yield hash(row[start : start + length])

    def _counts(self, grams: Iterable[int]) -> Counter[int]:
        """Return how many of its n-grams each row of the evaluation set has among ``grams``."""
        counts: Counter[int] = Counter()
        for gram in grams:
            for number, times in self.rows_with[gram]:
                counts[number] += times
        return counts

    def matches(self) -> list[Match]:
        """Return the match of each row of the evaluation set."""
        seen = self._counts(self.seen)
        return [self._match(number, seen[number]) for number in range(len(self.sizes))]

    def _match(self, number: int, seen: int) -> Match:
        if number not in self.nearest:
            return Match()
        exact, common, nearest, text = self.nearest[number]
        return Match(exact, seen / self.sizes[number], nearest, common / self.sizes[number], text)
