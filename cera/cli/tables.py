"""The one writer of tables: every command prints its results through it.

print(table([["CeRA", 12.3456]], headers=["adapter", "ER"], floatfmt=".2f"))
"""

from collections.abc import Sequence
from typing import Any, Literal

from tabulate import tabulate


def table(
    rows: Sequence[Sequence[Any]],
    headers: Sequence[str],
    floatfmt: str | Sequence[str] = ".3g",
    style: Literal["plain", "markdown"] = "plain",
) -> str:
    """Format rows as text: words to the left, numbers to the right, ``None`` as an empty cell.

    Args:
        rows: Cells of each row, strings or numbers.
        headers: One for each column.
        floatfmt: Format of floats, for all columns or one for each.
        style: ``"plain"`` for a terminal, ``"markdown"`` for a document.
    """
    formats = {"plain": "simple", "markdown": "github"}
    return tabulate(rows, headers=headers, floatfmt=floatfmt, tablefmt=formats[style], missingval="")
