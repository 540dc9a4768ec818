"""The one writer of tables: every command prints its results through it.

print(table([["CeRA", 12.3456]], headers=["adapter", "ER"], floatfmt=".2f"))
"""

from collections.abc import Collection, Sequence
from typing import Any, Literal

from tabulate import tabulate


def table(
    rows: Sequence[Sequence[Any]],
    headers: Sequence[str],
    floatfmt: str | Sequence[str] = ".3g",
    style: Literal["plain", "markdown"] = "plain",
    intfmt: str = "",
    verbatim: Collection[int] = (),
) -> str:
    """Format rows as text: words to the left, numbers to the right, ``None`` as an empty cell.

    Args:
        rows: Cells of each row, strings or numbers.
        headers: One for each column.
        floatfmt: Format of floats, for all columns or one for each.
        style: ``"plain"`` for a terminal, ``"markdown"`` for a document.
        intfmt: Format of integers, such as ``","``.
        verbatim: Indices of columns of numbers that are formatted already, such as ``"3e-4"`` and ``"-"``.
    """
    formats = {"plain": "simple", "markdown": "github"}
    alignment = None
    if verbatim and rows:
        words = [any(isinstance(row[i], str) for row in rows) for i in range(len(headers))]
        alignment = ["right" if i in verbatim else "left" if words[i] else "decimal" for i in range(len(headers))]
    return tabulate(
        rows,
        headers=headers,
        floatfmt=floatfmt,
        intfmt=intfmt,
        tablefmt=formats[style],
        missingval="",
        disable_numparse=list(verbatim) if rows else False,
        colalign=alignment,
    )
