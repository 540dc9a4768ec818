"""Reads the structure of a normalized answer: a list, tuple, interval, set, matrix, equation, inequality, or one value.

>>> read("(1, 2]")
Group(brackets='(]', items=('1', '2'))
>>> read("1<x≤2").value
'(1,2]'
"""

# ruff: noqa: RUF001  (the symbols of set theory resemble letters)

import re
from dataclasses import dataclass

Sides = tuple[str, str, str]
"""The left side, one of ``=``, ``≠``, ``<`` and ``≤``, and the right side."""


@dataclass(frozen=True)
class Group:
    """Answers in brackets: a tuple, an interval, a set; without brackets, a list.

    Attributes:
        brackets: The opening and the closing bracket, such as ``(]``; empty for a list.
        items: The answers.
    """

    brackets: str
    items: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of cells.

    Attributes:
        fence: ``""`` for round and square brackets alike, ``"v"`` for a determinant's bars, ``"V"`` for a norm's.
        rows: The cells of each row.
    """

    fence: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Named:
    """A name and its value: ``x = 5``, ``x \\in (1, 2]``, ``1 < x \\le 2``.

    Attributes:
        name: Such as ``x``, ``f(x)`` or ``\\angle ABC``.
        value: What it stands for; that of an inequality is an interval.
        sides: As for a ``Relation``.
    """

    name: str
    value: str
    sides: Sides | None = None


@dataclass(frozen=True)
class Relation:
    """An equation or inequality that gives no name a value.

    Attributes:
        text: All of it.
        sides: Its sides, if there are two.
    """

    text: str
    sides: Sides | None = None


@dataclass(frozen=True)
class Sets:
    """Intervals and sets that are joined by symbols: ``(-\\infty, 1) \\cup (2, \\infty)``."""

    text: str


Answer = Group | Matrix | Named | Relation | Sets | str
"""The structure of an answer; a text is a single value."""

SET_SIGNS = frozenset({"∪", "\\cap", "\\setminus", "\\backslash"})
_RELATIONS = frozenset("=≈<>≤≥≠∈")
_REVERSED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "≠": "≠"}
_OPEN, _CLOSE = {*"([{⦃", "\\begin"}, {*")]}⦄", "\\end"}
_TOKEN = re.compile(r"\\[A-Za-z]+|\\?.", re.DOTALL)  # \cup | \\ | x
_NAME = re.compile(  # x | f(x) | \angle ABC | a_{10} | f^{-1}(x)
    r"(?:[A-Za-z]|\\[A-Za-z]++)(?:[A-Za-z\s,'_(){}|]|\\[A-Za-z]++|(?<=[A-Za-z_{])\d|\^\{?-1\}?\()*"
)
_MATRIX = re.compile(  # \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
    r"\\begin\{([pbBvV]?)(?:small)?(?:matrix|array)\}(?:\{[clr|\s]*\})?(.*)\\end\{[a-zA-Z]+\}", re.DOTALL
)


def split(text: str, separators: frozenset[str]) -> tuple[list[str], list[str]]:
    """Split a text at the separators outside of all brackets.

    Returns:
        The parts and the separators between them; the whole text and none if its brackets do not match.
    """
    parts, matches, depth, start = [], [], 0, 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0 and token in separators:
            parts.append(text[start : match.start()].strip())
            matches.append(token)
            start = match.end()
    if depth:
        return [text], []
    return [*parts, text[start:].strip()], matches


def read(text: str) -> Answer:
    """Return the outermost structure of a normalized answer."""
    items, _ = split(text, frozenset(",;"))
    if len(items) > 1:
        return Group("", tuple(item for item in items if item))
    sides, relations = split(text, _RELATIONS)
    if relations:
        return _read_relation(text, sides, relations)
    if len(split(text, SET_SIGNS)[0]) > 1:
        return Sets(text)
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in split(matrix[2], frozenset({"\\\\"}))[0] if row]
        return Matrix(matrix[1].strip("pbB"), tuple(tuple(split(row, frozenset("&"))[0]) for row in rows))
    if text[:1] in ("(", "[", "⦃") and len(text) > 1 and text[-1] in ")]⦄" and _is_one_pair(text):
        return _read_brackets(text)
    return text


def _is_one_pair(text: str) -> bool:
    """Return whether the first bracket is closed by the last."""
    depth = 0
    for match in _TOKEN.finditer(text):
        depth += (match[0] in _OPEN) - (match[0] in _CLOSE)
        if depth == 0:
            return match.end() == len(text)
    return False


def _read_brackets(text: str) -> Answer:
    items = tuple(split(text[1:-1].strip(), frozenset(",;"))[0])
    brackets = text[0] + text[-1]
    lists = [row for item in items if isinstance(row := read(item), Group) and row.brackets == brackets == "[]"]
    if len(lists) == len(items):  # a matrix as programs print it: [[1, 2], [3, 4]]
        return Matrix("", tuple(row.items for row in lists))
    if len(items) == 1 and (brackets == "()" or _MATRIX.fullmatch(items[0])):
        return read(items[0])
    return Group(brackets, items)


def _read_relation(text: str, sides: list[str], relations: list[str]) -> Answer:
    first, last = sides[0], sides[-1]
    if not first:  # as in "\approx 8.24"
        return read(last)
    if set(relations) <= {"=", "≈"}:
        equation = (first, "=", last)
        if _is_name(first):
            return Named(first, last, equation)
        if _is_name(last) and len(sides) == 2:
            return Named(last, first, equation)
        has_variables = re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", first))
        return Relation(text, equation) if has_variables else read(last)  # 2 + 3 = 5 is 5
    if relations == ["∈"]:
        return Named(first, last)
    interval = _interval(sides, relations)
    two_sides = None
    if len(sides) == 2:
        sign = relations[0]
        two_sides = (last, _REVERSED[sign], first) if sign in ">≥" else (first, sign, last)
    return Named(*interval, two_sides) if interval else Relation(text, two_sides)


def _is_name(side: str) -> bool:
    """Return whether a side is a name, such as ``x``, ``f(x)`` or ``\\angle ABC``, or a tuple of names."""
    if side.startswith("("):
        group = read(side)
        return isinstance(group, Group) and all(_is_name(item) for item in group.items)
    return _NAME.fullmatch(side) is not None and not side.startswith(("\\frac", "\\sqrt", "\\pi"))


def _interval(sides: list[str], relations: list[str]) -> tuple[str, str] | None:
    """Return the name and its interval of an inequality such as ``x > 1`` or ``1 < x \\le 2``."""
    if (set(relations) <= {">", "≥"} and len(sides) == 3) or (len(sides) == 2 and not _is_name(sides[0])):
        sides, relations = sides[::-1], [_REVERSED[relation] for relation in reversed(relations)]
    if len(sides) == 2 and _is_name(sides[0]):
        (name, bound), relation = sides, relations[0]
        intervals = {
            "<": f"(-\\infty ,{bound})",
            "≤": f"(-\\infty ,{bound}]",
            ">": f"({bound},\\infty )",
            "≥": f"[{bound},\\infty )",
            "≠": f"(-\\infty ,{bound})∪({bound},\\infty )",
        }
        return name, intervals[relation]
    if len(sides) == 3 and _is_name(sides[1]) and set(relations) <= {"<", "≤"}:
        low, name, high = sides
        opening = "[" if relations[0] == "≤" else "("
        closing = "]" if relations[1] == "≤" else ")"
        return name, f"{opening}{low},{high}{closing}"
    return None


def with_both_signs(text: str) -> str:
    """Return an answer with ``±`` as the list of two answers that it stands for: ``±3`` becomes ``3, -3``."""
    if "±" not in text and "∓" not in text:
        return text
    upper, lower = str.maketrans("±∓", "+-"), str.maketrans("±∓", "-+")
    answers: list[str] = []
    for item in split(text, frozenset(",;"))[0]:
        both = (item.translate(upper).strip(" +"), item.translate(lower).strip())
        answers += dict.fromkeys(both)
    return ", ".join(answers)
