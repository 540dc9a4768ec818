"""Whether expressions and equations are equal, by math-verify. Under no limit: a few signs can take it for ever."""

# ruff: noqa: RUF001  (the signs of set theory are alike to letters)

import re
from fractions import Fraction
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from math_verify import verify
from sympy import Basic, Expr, I, Rational, S, Symbol

from .notation import TRIGONOMETRIC
from .numbers import DECIMALS, is_rounded
from .structure import Sides

_LATEX = {"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "=", "∈": "\\in ", "∪": "\\cup ", "⦃": "\\{", "⦄": "\\}"}
_POINTS = (Fraction(617, 521), Fraction(1409, 389), Fraction(211, 673))
"""Values for variables; expressions that differ at one are not the same."""


def parsed(text: str) -> Any:
    """The sympy object of a normalized expression, by math-verify's parser.

    Raises:
        Exception: Of whatever kind the parser raises on what it cannot read.
    """
    for symbol, latex in _LATEX.items():
        text = text.replace(symbol, latex)
    if TRIGONOMETRIC.search(text):
        text = re.sub(r"(\d+)\s*\^\s*\{?\s*\\circ\s*\}?", r"{(\\frac{\1\\pi}{180})}", text)
    text = re.sub(r"((?<![\w.^{])[\d.]+|\)|\\pi)\s*(?=\()", r"\1\\times ", text)  # it takes 2(3) for a mixed number
    # exactly: floats are equal to math-verify if they differ in the seventh place
    text = re.sub(r"(?<![\w.])(\d*)\.(\d+)", lambda m: f"{{\\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}}}}", text)
    found = latex2sympy(
        text,
        is_real=True,
        normalization_config=NormalizationConfig(malformed_operators=True, boxed="none"),
        conversion_config=ConversionConfig(lowercase_symbols=False),  # as it is, R^2 - r^2 would be 0
    )
    if not isinstance(found, Basic):  # a matrix with variables in it
        return found
    return found.xreplace({s: I if s.name == "i" else Symbol(s.name, real=True) for s in found.atoms(Symbol)})


def is_rounding(decimal: str, expression: str) -> bool:
    """Whether a decimal of enough decimals is the rounding of a constant."""
    if not re.fullmatch(rf"[-+]?\d*\.\d{{{DECIMALS},}}", decimal):
        return False
    constant = parsed(expression)
    if getattr(constant, "free_symbols", None):
        return False
    value = constant.evalf(len(decimal) + 10)
    return bool(value.is_Float or value.is_Integer) and is_rounded(decimal, expression, Fraction(str(value)))


def same_expression(a: str, b: str) -> bool:
    """Whether two expressions, of which the second is the gold one, are equal."""
    try:
        x, y = parsed(a), parsed(b)
    except Exception:  # the parser has no class of its own for what it cannot read
        return False
    if isinstance(x, Expr) and isinstance(y, Expr):
        if any(_differ(x, y, at) for at in _POINTS):
            return False
        if not x.free_symbols | y.free_symbols:
            x, y = x.doit(), y.doit()
            if x.is_Rational and y.is_Rational:
                return bool(x == y)
            if _is_finite(x) and _is_finite(y):
                return True
    return verify(y, x, timeout_seconds=None)


def _is_finite(x: Any) -> bool:
    return bool(x.evalf(15).is_finite)


def _differ(x: Any, y: Any, point: Fraction) -> bool:
    """Whether two expressions have different values, both finite, with the variables near ``point``."""
    at = _near(point, x, y)
    one, other = x.subs(at), y.subs(at)
    values = [value.evalf(30) for value in (one, other)]
    if not all(value.is_number and value.is_finite for value in values):
        return False
    return bool(abs((one - other).evalf(30)) > max(abs(values[0]), abs(values[1])) * 1e-20)


def _near(point: Fraction, x: Any, y: Any) -> dict[Any, Any]:
    """Values for the variables of two expressions, near ``point`` and with irregular differences."""
    variables = sorted(x.free_symbols | y.free_symbols, key=str)
    return {v: Rational(point.numerator + 17 * i**2, point.denominator + i) for i, v in enumerate(variables)}


def same_relation(a: Sides, b: Sides) -> bool:
    """Whether two equations or inequalities say the same: their differences of sides are multiples of each other."""
    if a[1] != b[1]:
        return False
    x, y = (parsed(f"({left})-({right})") for left, _, right in (a, b))
    if not isinstance(x, Expr) or not isinstance(y, Expr) or x.free_symbols != y.free_symbols:
        return False
    pairs = ([side.subs(_near(point, x, y)) for side in (x, y)] for point in _POINTS)
    one, other = next((pair for pair in pairs if 0 not in pair), (S.Zero, S.One))  # a point may lie on the curve
    factor = (one / other).doit()
    if not factor.is_number or not factor.is_finite or factor.is_zero or (a[1] in "<≤" and not factor.is_positive):
        return False
    y = factor * y
    return not any(_differ(x, y, point) for point in _POINTS) and verify(y, x, timeout_seconds=None)
