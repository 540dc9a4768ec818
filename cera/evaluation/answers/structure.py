"""What a normalized answer is made of: a list, tuple, interval, set, matrix, equation, or inequality; or one value."""

# ruff: noqa: RUF001  (the signs of set theory are alike to letters)

import re
from dataclasses import dataclass

Sides = tuple[str, str, str]
"""The left side, ``=``, ``≠``, ``<`` or ``≤``, and the right side."""


@dataclass(frozen=True)
class Group:
    """Answers in brackets, as they open and close: a tuple, an interval, a set; without brackets, a list."""

    brackets: str
    items: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of cells; ``fence`` is ``""`` for round and square brackets alike, and ``"v"`` for a determinant's."""

    fence: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Named:
    """What a name stands for: ``x = 5``, ``x \\in (1, 2]``, ``1 < x \\le 2``; ``sides`` as of a ``Relation``."""

    name: str
    value: str
    sides: Sides | None = None


@dataclass(frozen=True)
class Relation:
    """An equation or inequality that gives no name a value; ``sides``: if there are two."""

    text: str
    sides: Sides | None = None


@dataclass(frozen=True)
class Sets:
    """Intervals and sets with signs between them: ``(-\\infty, 1) \\cup (2, \\infty)``."""

    text: str


Answer = Group | Matrix | Named | Relation | Sets | str

_TOKEN = re.compile(r"\\[A-Za-z]+|\\?.", re.DOTALL)
_OPEN, _CLOSE = {*"([{⦃", "\\begin"}, {*")]}⦄", "\\end"}
_RELATIONS = frozenset("=≈<>≤≥≠∈")
_TURNED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "≠": "≠"}
SET_SIGNS = frozenset({"∪", "\\cap", "\\setminus", "\\backslash"})
_NAME = re.compile(r"(?:[A-Za-z]|\\[A-Za-z]++)(?:[A-Za-z\s,'_(){}|]|\\[A-Za-z]++|(?<=[A-Za-z_{])\d|\^\{?-1\}?\()*")
_MATRIX = re.compile(
    r"\\begin\{([pbBvV]?)(?:small)?(?:matrix|array)\}(?:\{[clr|\s]*\})?(.*)\\end\{[a-zA-Z]+\}", re.DOTALL
)


def split(text: str, at: frozenset[str]) -> tuple[list[str], list[str]]:
    """The parts between separators outside of all brackets, and the separators; all of it if brackets do not match."""
    parts, separators, depth, start = [], [], 0, 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0 and token in at:
            parts.append(text[start : match.start()].strip())
            separators.append(token)
            start = match.end()
    if depth:
        return [text], []
    return [*parts, text[start:].strip()], separators


def read(text: str) -> Answer:
    """The structure of a normalized answer, one level of it."""
    items, _ = split(text, frozenset(",;"))
    if len(items) > 1:
        return Group("", tuple(item for item in items if item))
    sides, relations = split(text, _RELATIONS)
    if relations:
        return _relation(text, sides, relations)
    if len(split(text, SET_SIGNS)[0]) > 1:
        return Sets(text)
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in split(matrix[2], frozenset({"\\\\"}))[0] if row]
        return Matrix(matrix[1].strip("pbB"), tuple(tuple(split(row, frozenset("&"))[0]) for row in rows))
    if text[:1] in ("(", "[", "⦃") and len(text) > 1 and text[-1] in ")]⦄" and _is_one_pair(text):
        inner = tuple(split(text[1:-1].strip(), frozenset(",;"))[0])
        brackets = text[0] + text[-1]
        lists = [row for item in inner if isinstance(row := read(item), Group) and row.brackets == brackets == "[]"]
        if len(lists) == len(inner):  # a matrix as programs print it
            return Matrix("", tuple(row.items for row in lists))
        if len(inner) == 1 and (brackets == "()" or _MATRIX.fullmatch(inner[0])):
            return read(inner[0])
        return Group(brackets, inner)
    return text


def _is_one_pair(text: str) -> bool:
    """Whether the first bracket is closed by the last."""
    depth = 0
    for match in _TOKEN.finditer(text):
        depth += (match[0] in _OPEN) - (match[0] in _CLOSE)
        if depth == 0:
            return match.end() == len(text)
    return False


def _relation(text: str, sides: list[str], relations: list[str]) -> Answer:
    first, last = sides[0], sides[-1]
    if not first:  # as in "\approx 8.24"
        return read(last)
    if set(relations) <= {"=", "≈"}:
        equation = (first, "=", last)
        if _is_name(first):
            return Named(first, last, equation)
        if _is_name(last) and len(sides) == 2:
            return Named(last, first, equation)
        return Relation(text, equation) if re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", first)) else read(last)
    if relations == ["∈"]:
        return Named(first, last)
    interval = _interval(sides, relations)
    two = None
    if len(sides) == 2:
        two = (last, _TURNED[relations[0]], first) if relations[0] in ">≥" else (first, relations[0], last)
    return Named(*interval, two) if interval else Relation(text, two)


def _is_name(side: str) -> bool:
    """As ``x``, ``f(x)`` and ``\\angle ABC`` are; or a tuple of names, as in ``(x, y) = (1, 2)``."""
    if side.startswith("("):
        group = read(side)
        return isinstance(group, Group) and all(_is_name(item) for item in group.items)
    return _NAME.fullmatch(side) is not None and not side.startswith(("\\frac", "\\sqrt", "\\pi"))


def _interval(sides: list[str], relations: list[str]) -> tuple[str, str] | None:
    """The name and its interval of ``x > 1``, ``1 < x \\le 2`` and the like."""
    if (set(relations) <= {">", "≥"} and len(sides) == 3) or (len(sides) == 2 and not _is_name(sides[0])):
        sides, relations = sides[::-1], [_TURNED[relation] for relation in reversed(relations)]
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
        return name, f"{'[' if relations[0] == '≤' else '('}{low},{high}{']' if relations[1] == '≤' else ')'}"
    return None


def signs(text: str) -> str:
    """Both signs as the list of two that they are."""
    if "±" not in text and "∓" not in text:
        return text
    plus, minus = str.maketrans("±∓", "+-"), str.maketrans("±∓", "-+")
    return ", ".join(
        both
        for item in split(text, frozenset(",;"))[0]
        for both in dict.fromkeys((item.translate(plus).strip(" +"), item.translate(minus).strip()))
    )
