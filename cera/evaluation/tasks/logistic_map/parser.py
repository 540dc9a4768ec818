"""Reads the values that an answer states for each step of a trajectory.

>>> parse("x_1 = 3.5 * 0.4 * (1 - 0.4) = 0.84 and x_2 = 0.4704")
[0.84, 0.4704]
>>> parse("| n | x_n |\\n|---|---|\\n| 1 | 0.84 |\\n| 2 | 0.4704 |")
[0.84, 0.4704]
"""

# ruff: noqa: RUF001  (answers have typographic signs)

import re
from collections.abc import Iterable, Sequence

from cera.evaluation.tasks.logistic_map.layouts import Statement, joined_by_arrows, list_items, table_rows
from cera.evaluation.tasks.logistic_map.links import ARROW, EQUALS, stated_value

_DECORATION = r"(?:[\s*$&)}\]`]|\\\)|\\\])*"
"""Markdown, LaTeX and brackets between a step's name and the sign after it, as in ``**x_1** =``."""
_NAME = re.compile(
    r"(?<![A-Za-z0-9\\_])(?:(?P<x>x\s?_?\s?[{(\[]?)|(?:step|iteration)\s?#?|[nkti]\s?=\s?)"
    rf"(?P<index>\d{{1,5}})(?![\d.]){_DECORATION}(?:{EQUALS}|{ARROW}|(?<![\\A-Za-z])(?:is|equals|becomes)\b)",
    re.IGNORECASE,
)
"""``x_1 =``, ``x1:``, ``x[1] ->``, ``x_{1} \\approx``, ``x_1 is``, ``Step 1:``, ``n = 1:``."""
_REFERENCE = re.compile(r"(?:[\w)\]}]\s*(?:[-+*·⋅×/^]|\\cdot|\\times)\s*[({]?|[A-Za-z]\(|(?<![A-Za-z])r)\s*$")
"""The text before a name in a formula, such as the second ``x_1`` of ``3.5 * x_1 * (1 - x_1) = 0.4704``."""
_BEFORE = 12
"""Number of characters before a name in which ``_REFERENCE`` is searched."""
_CONTINUATION = re.compile(r"[\s$&]*(?:=|≈|\\approx)")
"""The beginning of a line that continues the chain of the line before: ``  = 0.84``."""
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉\u2212", "0123456789-")


def parse(text: str, x0: float | None = None) -> list[float]:
    """Return the values x_1, x_2, ... that an answer states, up to the first that is missing.

    A statement is the name of a step, a sign and a value. Names are ``x_1``, ``x1``, ``x_{1}``, ``x[1]`` or ``x₁``, and
    ``Step 1`` or ``n = 1``; the number of a row in a table, or of an item in a list, is one, too. Signs are ``=``,
    ``:``, ``≈``, arrows and ``is``. The value is the last link of the chain of equations up to the next name; the chain
    may continue on lines that begin with ``=``. Values that arrows join need no names.

    Of two statements of one step the first counts. If several kinds of names are used, those of x count, and others
    that agree with them and go on; then those of ``Step``, of tables, lists and arrows. The time is linear in the
    length of the text.

    Args:
        text: The answer.
        x0: The initial value, with which values that arrows join may begin.
    """
    lines = text.translate(_SUBSCRIPTS).splitlines()
    by_x, by_step = _named(lines)
    unnamed = [line for line in lines if not _NAME.search(line)]
    readings = [
        _leading(by_x),
        _leading(by_step),
        _leading(table_rows(lines)),
        _leading(list_items(unnamed)),
        joined_by_arrows(lines, x0),
    ]
    first = next((reading for reading in readings if reading), [])
    return max((reading for reading in readings if reading[: len(first)] == first), key=len)


def _named(lines: Iterable[str]) -> tuple[list[Statement], list[Statement]]:
    """Return the statements that name steps as values of x, and those that number them in another way."""
    by_x: list[Statement] = []
    by_step: list[Statement] = []
    last: list[Statement] | None = None  # where a line of continuation belongs
    for line in lines:
        if last is not None and _CONTINUATION.match(line):
            value = stated_value(line)
            if value is not None:
                last[-1] = (last[-1][0], value)
            continue
        names = [name for name in _NAME.finditer(line) if not _REFERENCE.search(line[_before(name) : name.start()])]
        ends = [name.start() for name in names[1:]] + [len(line)]
        for name, end in zip(names, ends, strict=False):
            last = by_step if name["x"] is None else by_x
            last.append((int(name["index"]), stated_value(line[name.end() : end])))
    return by_x, by_step


def _before(name: re.Match[str]) -> int:
    return max(0, name.start() - _BEFORE)


def _leading(statements: Sequence[Statement]) -> list[float]:
    """Return the values of steps 1, 2, ..., up to the first that is not stated."""
    stated: dict[int, float] = {}
    for step, value in statements:
        if value is not None:
            stated.setdefault(step, value)
    values: list[float] = []
    while len(values) + 1 in stated:
        values.append(stated[len(values) + 1])
    return values
