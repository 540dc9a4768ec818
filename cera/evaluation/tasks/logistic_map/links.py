"""Reads the value at the end of a chain of equations: ``3.5 * 0.4 * 0.6 = 0.84``."""

# ruff: noqa: RUF001  (answers have typographic signs)

import re

EQUALS = r"==?(?!>)|:|≈|≃|≅|\\(?:approx|simeq)(?![A-Za-z])"
"""What separates the links of a chain."""
ARROW = r"[-–—=]{1,3}>|→|⟶|↦|⇒|\\(?:to|mapsto|implies|(?:long)?(?:right|Right)arrow)(?![A-Za-z])"
"""What leads to a rounded value, or to the next step."""

_EQUALS, _ARROW = re.compile(EQUALS), re.compile(ARROW)
_REMARK = re.compile(r"[,;|]|(?<=[\d)}$*])[\s$*)}]{0,8}(?:\(?\s?[A-Za-z]{2}|\(\s?[A-Za-z]\s?=)")
"""What ends a chain before the line does: ``0.84, as`` or ``0.84 (rounded)`` or ``0.84 (r = 3.5)``."""
_NUMBER = re.compile(
    r"[\s*$&{(\[\\`]*+(?:(?:boxed|text|mathbf)\{|(?:approximately|about|roughly)\s)?[\s*$`]*+"
    r"(?P<number>-?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,3})?)"
    r"(?![\w(]|\.\d)(?!\s*(?:[-+*/^×·⋅x]\s*[\d.(x]|\\cdot|\\times))",
    re.IGNORECASE,
)
"""A number that is not the first factor of a product: ``0.84`` and ``\\boxed{0.84}``, but not ``3.5 * 0.4``."""


def stated_value(chain: str) -> float | None:
    """Return the last number that is a link of a chain, or ``None`` if none is: ``3.5 * 0.4`` is no number.

    Of values that arrows join, the first is that of the chain.
    """
    value = None
    for link in _EQUALS.split(_REMARK.split(chain, maxsplit=1)[0]):
        numbers = (_NUMBER.match(part) for part in _ARROW.split(link))
        number = next((number for number in numbers if number), None)
        value = float(number["number"]) if number else value
    return value
