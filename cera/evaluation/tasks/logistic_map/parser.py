"""Reads the values that an answer states for each step of a trajectory."""

import re

_DECORATION = r"(?:[\s*$&)}]|\\\)|\\\])*"
"""Markdown, LaTeX and brackets between a step's name and the sign after it, as in ``**x_1** =``."""
_STEP_NAME = re.compile(
    rf"(?<![A-Za-z0-9\\])(?:(?P<step>step)\s?#?|x\s?_?)[{{(]?(?P<index>\d{{1,5}})(?!\d){_DECORATION}"
    r"(?:=|:|≈|\\approx)",
    re.IGNORECASE,
)
"""``x_1 =``, ``x1:``, ``x_{1} \\approx``, ``Step 1:``."""
_CHAIN = re.compile(r"=|:|≈|→|\\approx")
"""What separates the links of ``x_1 = 3.5 * 0.4 * 0.6 = 0.84``."""
_CONTINUATION = re.compile(r"[\s$&]*(?:=|≈|\\approx)")
"""The beginning of a line that continues the chain of the line before: ``  = 0.84``."""
_NUMBER = re.compile(
    r"[\s*$&{(\[\\]*(?:(?:boxed|text|mathbf)\{)?\s*(?P<number>-?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,3})?)"
    r"(?![\w(]|\.\d)(?!\s*(?:[-+*/^\u00d7\u00b7x]\s*[\d.(x]|\\cdot|\\times))",
    re.IGNORECASE,
)
"""A number that is not the first factor of a product: ``0.84`` and ``\\boxed{0.84}``, but not ``3.5 * 0.4``."""
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉\u2212", "0123456789-")


def parse(text: str) -> list[float]:
    """Return the values x_1, x_2, ... that an answer states, up to the first that is missing.

    A statement is ``x_1``, ``x1``, ``x_{1}``, ``x₁`` or ``Step 1``, followed by ``=``, ``:`` or ``≈``; its value is the
    last link of the chain, which may continue on lines that begin with ``=``. Of two statements of one step the first
    counts, and a statement of x counts before one of ``Step``. The time is linear in the length of the text.

    Args:
        text: The answer.
    """
    by_step: dict[int, float] = {}
    by_x: dict[int, float] = {}
    continued: tuple[dict[int, float], int] | None = None  # the statement that a continuation line belongs to
    for line in text.translate(_SUBSCRIPTS).splitlines():
        if continued is not None and _CONTINUATION.match(line):
            value = _last_link(line)
            if value is not None:
                continued[0][continued[1]] = value
            continue
        for segment in re.split(r"[,;|]", line):
            name = _STEP_NAME.search(segment)
            if name is None:
                continue
            stated, index = by_step if name["step"] else by_x, int(name["index"])
            if index in stated:
                continued = None
                continue
            continued = stated, index
            value = _last_link(segment[name.end() :])
            if value is not None:
                stated[index] = value
    all_stated = by_step | by_x
    values: list[float] = []
    while len(values) + 1 in all_stated:
        values.append(all_stated[len(values) + 1])
    return values


def _last_link(chain: str) -> float | None:
    """Return the number that a chain of equations ends in, or ``None`` if it ends in something else."""
    number = _NUMBER.match(_CHAIN.split(chain)[-1])
    return float(number["number"]) if number else None
