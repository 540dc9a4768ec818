"""Reads and compares the numbers that answers write out, exactly.

>>> number(r"0.1\\overline{6}")
Fraction(1, 6)
>>> same_number("0.33", r"\\frac{1}{3}"), same_number("0.333333", r"\\frac{1}{3}")
(False, True)
"""

import re
from fractions import Fraction

DECIMALS = 6
"""Number of decimals from which on a decimal stands for what it is rounded from: 0.333333 is 1/3, and 0.33 is not."""

SEPARATE_NUMBERS = re.compile(r"\d \d")
"""Two numbers, such as ``1 2``, which are neither 12 nor a product."""

_FRACTION = re.compile(r"([-+]?)\\frac\{([-+]?\d+)\}\{(\d+)\}|([-+]?)(\d+)/(\d+)")  # -\frac{1}{2} | 1/2
_DECIMAL = re.compile(r"([-+]?(?:\d+(?:\.\d*)?|\.\d+))(?:\\times10\^(?:\{([-+]?\d{1,3})\}|(\d)))?")  # -.5 | 2\times10^3
_REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)\\(?:overline|bar|dot)\{?(\d+)\}?")  # 0.1\overline{6}
_IN_BASE = re.compile(r"(-?(?=[0-9A-Z]*\d)[0-9A-Z]+)_\{?(\d{1,2})\}?")  # 1A_{16}


def number(text: str) -> Fraction | None:
    """Return the number that a normalized answer writes out: an integer, decimal, fraction, or power of ten times one.

    Returns:
        The number; ``None`` for any other answer.
    """
    if SEPARATE_NUMBERS.search(text):
        return None
    text = text.replace(" ", "")
    if match := _DECIMAL.fullmatch(text):
        return Fraction(match[1]) * Fraction(10) ** int(match[2] or match[3] or 0)
    if match := _FRACTION.fullmatch(text):
        sign, numerator, denominator = match[1] or match[4] or "", match[2] or match[5], int(match[3] or match[6])
        return Fraction(int(numerator), denominator) * (-1 if sign == "-" else 1) if denominator else None
    if match := _REPEATING.fullmatch(text):
        sign, whole, fixed, repeated = match.groups()
        once = Fraction(int(whole + fixed + repeated) - int(whole + fixed or "0"), 10 ** len(repeated) - 1)
        return once / 10 ** len(fixed) * (-1 if sign == "-" else 1)
    return None


def same_number(a: str, b: str) -> bool | None:
    """Return whether both are the same number; ``None`` if one of them is not a number that is written out."""
    x, y = number(a), number(b)
    if x is None or y is None:
        return None
    return x == y or is_rounded(a, b, y) or is_rounded(b, a, x)


def is_rounded(decimal: str, exact: str, value: Fraction | None) -> bool:
    """Return whether a decimal is the rounding of a value, with enough decimals to stand for it.

    Args:
        decimal: The decimal.
        exact: The other answer.
        value: The value of ``exact``.
    """
    match = re.fullmatch(r"[-+]?0*(\d*)\.(\d+)", decimal.replace(" ", ""))
    if match is None or "." in exact or len(match[2]) < DECIMALS or len((match[1] + match[2]).lstrip("0")) < DECIMALS:
        return False
    return value is not None and abs(value - Fraction(decimal.replace(" ", ""))) * 2 * 10 ** len(match[2]) <= 1


def same_in_base(a: str, b: str) -> bool | None:
    """Return whether two numbers, at least one of them in a base such as ``101_2``, are the same.

    If only one of them has a base, it is the question's, and the digits are compared.

    Returns:
        ``None`` if neither has a base.
    """
    first, second = (_IN_BASE.fullmatch(text.replace(" ", "")) for text in (a, b))
    if first is None and second is None:
        return None
    if first is None or second is None:
        return (first[1] if first else a) == (second[1] if second else b)
    try:
        return int(first[1], int(first[2])) == int(second[1], int(second[2]))
    except ValueError:  # a digit that the base does not have, or a base that does not exist
        return False
