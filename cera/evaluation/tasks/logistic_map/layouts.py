"""Reads the values of a trajectory out of tables, numbered lists and values that arrows join."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cera.evaluation.tasks.logistic_map.links import ARROW, stated_value

Statement = tuple[int, float | None]
"""A step, and the value that is stated for it; ``None`` if what follows its name is no value."""

_ITEM = re.compile(r"\s*(?:[-*+]\s+)?[*(]{0,3}(?P<index>\d{1,5})(?:[*]{0,2}[.):]|[.):][*]{0,2})\s+(?P<chain>.*)")
"""An item of a list: ``1. 0.84`` or ``(1) 3.5 * 0.4 * 0.6 = 0.84``."""
_CELLS = re.compile(r"[|&\t]")
_INDEX = re.compile(r"(?:step|iteration|x\s?_?|n\s?=)?\s?[{(\[]?(?P<index>\d{1,5})[)}\]]?", re.IGNORECASE)
"""A cell that names a step: ``1``, ``Step 1`` or ``x_1``."""
_NEXT = re.compile(r"x\s?_?[{(\[]?\s?n\s?\+\s?1.*", re.IGNORECASE)
"""The head of a column with the values that follow: ``x_{n+1}``."""
_VALUE = re.compile(r"x(?:\s?_?[{(\[]?\s?n.{0,2})?|value.*", re.IGNORECASE)
"""The head of a column with values: ``x_n``."""


def list_items(lines: Iterable[str]) -> list[Statement]:
    """Return what the items of a numbered list state."""
    items = (_ITEM.match(line) for line in lines)
    return [(int(item["index"]), stated_value(item["chain"])) for item in items if item]


def joined_by_arrows(lines: Iterable[str], x0: float | None) -> list[float]:
    """Return the values of the first line that consists of three or more values with arrows between them.

    Args:
        lines: The lines of an answer.
        x0: The initial value, which is left out if the line begins with it.
    """
    for line in lines:
        parts = re.split(ARROW, line)
        values = [value for part in parts if (value := stated_value(part)) is not None]
        if len(parts) == len(values) > 2:
            return values[1:] if values[0] == x0 else values
    return []


class _Head(NamedTuple):
    """What the first row of a table says about the rows below it.

    Attributes:
        cells: The number of its cells.
        steps: Column -> the step of its values, if all columns but perhaps the first one are called by steps.
        value: The column of a row's value; -1, the last one, if none is called ``x_n`` or the like.
        follows: Whether that column is called ``x_{n+1}``.
    """

    cells: int
    steps: dict[int, int]
    value: int
    follows: bool

    @classmethod
    def read(cls, cells: Sequence[str]) -> "_Head":
        matches = {column: match for column, cell in enumerate(cells) if (match := _INDEX.fullmatch(cell))}
        steps = {column: int(match["index"]) for column, match in matches.items()}
        value = {name: [c for c, cell in enumerate(cells) if c and name.fullmatch(cell)] for name in (_NEXT, _VALUE)}
        return cls(
            len(cells),
            steps if steps.keys() >= set(range(1, len(cells))) else {},
            [*value[_NEXT], *value[_VALUE], -1][0],
            follows=bool(value[_NEXT]),
        )


def table_rows(lines: Iterable[str]) -> list[Statement]:
    """Return what the rows of tables state: steps in the first column, or in the first row.

    The value of a row is in the column that is called ``x_n`` or the like, or else in its last one. If a column is
    called ``x_{n+1}``, its values belong to the step after n where n begins at 0, and otherwise to the row's own step.
    """
    statements: list[Statement] = []
    head, rows, shift = _Head.read([]), 0, 0
    for line in lines:
        cells = [cell.strip(" *$`\\()") for cell in _CELLS.split(line.strip().strip("|"))]
        if len(cells) < 2 or not re.search(r"\w", line):  # no table, or the line below its head
            continue
        index = _INDEX.fullmatch(cells[0])
        if index and not all(_INDEX.fullmatch(cell) for cell in cells):
            rows += 1
            if rows == 1:
                shift = int(head.follows and int(index["index"]) == 0)
            column = head.value if head.value < len(cells) else -1
            statements.append((int(index["index"]) + shift, stated_value(cells[column])))
        elif len(cells) == head.cells and head.steps:
            statements += [(step, stated_value(cells[column])) for column, step in head.steps.items()]
        else:
            head, rows = _Head.read(cells), 0
    return statements
