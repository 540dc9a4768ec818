"""The numbers that answers write out, exactly."""

import re
from fractions import Fraction

DECIMALS = 6
"""From so many decimals on, a decimal stands for what it is the rounding of: 0.333333 is 1/3, and 0.33 is not."""

APART = re.compile(r"\d \d")
_FRACTION = re.compile(r"([-+]?)\\frac\{([-+]?\d+)\}\{(\d+)\}|([-+]?)(\d+)/(\d+)")
_DECIMAL = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+))(?:\\times10\^(?:\{([-+]?\d{1,3})\}|(\d)))?")
_REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)\\(?:overline|bar|dot)\{?(\d+)\}?")
_BASE = re.compile(r"(-?(?=[0-9A-Z]*\d)[0-9A-Z]+)_\{?(\d{1,2})\}?")


def number(text: str) -> Fraction | None:
    """The number that a normalized answer writes out: an integer, decimal, fraction, or power of ten times one."""
    if APART.search(text):
        return None
    text = text.replace(" ", "")
    if match := _DECIMAL.fullmatch(text):
        return Fraction(match[1]) * Fraction(10) ** int(match[2] or match[3] or 0)
    if match := _FRACTION.fullmatch(text):
        sign, over, under = match[1] or match[4] or "", match[2] or match[5], int(match[3] or match[6])
        return Fraction(int(over), under) * (-1 if sign == "-" else 1) if under else None
    if match := _REPEATING.fullmatch(text):
        sign, whole, fixed, repeated = match.groups()
        once = Fraction(int(whole + fixed + repeated) - int(whole + fixed or "0"), 10 ** len(repeated) - 1)
        return once / 10 ** len(fixed) * (-1 if sign == "-" else 1)
    return None


def same_number(a: str, b: str) -> bool | None:
    """Whether they are the same number; ``None`` if one is no number that is written out."""
    x, y = number(a), number(b)
    if x is None or y is None:
        return None
    return x == y or is_rounded(a, b, y) or is_rounded(b, a, x)


def is_rounded(decimal: str, exact: str, value: Fraction | None) -> bool:
    """Whether a decimal has enough decimals to stand for ``value``, written as ``exact``, and is the rounding of it."""
    match = re.fullmatch(r"[-+]?0*(\d*)\.(\d+)", decimal.replace(" ", ""))
    if match is None or "." in exact or len(match[2]) < DECIMALS or len((match[1] + match[2]).lstrip("0")) < DECIMALS:
        return False
    return value is not None and abs(value - Fraction(decimal.replace(" ", ""))) * 2 * 10 ** len(match[2]) <= 1


def same_in_base(a: str, b: str) -> bool | None:
    """For numbers in a base; a base that one of them does not give is the question's."""
    found = [_BASE.fullmatch(text.replace(" ", "")) for text in (a, b)]
    if not any(found):
        return None
    if not all(found):
        digits = [match[1] if match else text for match, text in zip(found, (a, b), strict=True)]
        return digits[0] == digits[1]
    try:
        return int(found[0][1], int(found[0][2])) == int(found[1][1], int(found[1][2]))  # type: ignore[index]
    except ValueError:  # no digits of that base, or no base
        return False
