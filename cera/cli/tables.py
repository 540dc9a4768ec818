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
    verbatim: Collection[int] | None = None,
) -> str:
    """Format rows as text: words to the left, numbers to the right, ``None`` as an empty cell.

    Args:
        rows: Cells of each row, strings or numbers.
        headers: One for each column.
        floatfmt: Format of floats, for all columns or one for each.
        style: ``"plain"`` for a terminal, ``"markdown"`` for a document.
        intfmt: Format of integers, such as ``","``.
        verbatim: Indices of columns of numbers that are formatted already, such as ``"3e-4"`` and ``"-"``. If given,
            no string in any column is parsed as a number.
    """
    formats = {"plain": "simple", "markdown": "pipe"}
    alignment, unparsed = None, []
    if verbatim is not None and rows:
        text = {i for i in range(len(headers)) if any(isinstance(row[i], str) for row in rows)}
        unparsed = sorted(text.union(verbatim))
        alignment = ["right" if i in verbatim else "left" if i in text else "decimal" for i in range(len(headers))]
    return tabulate(
        rows,
        headers=headers,
        floatfmt=floatfmt,
        intfmt=intfmt,
        tablefmt=formats[style],
        missingval="",
        disable_numparse=unparsed or False,
        colalign=alignment,
    )
