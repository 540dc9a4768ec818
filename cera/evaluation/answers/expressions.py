"""Compares expressions, equations and sets by math-verify and sympy.

    >>> same_expression(r"\\frac{x^2-1}{x-1}", "x+1")
    True

Nothing here has a limit of time or memory: an expression of a few characters can take for ever.
"""

# ruff: noqa: RUF001  (the symbols of set theory resemble letters)

import re
from fractions import Fraction
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from math_verify import verify
from sympy import Basic, Expr, FiniteSet, I, Intersection, Interval, Rational, S, Symbol, Union

from .notation import TRIGONOMETRIC
from .numbers import DECIMALS, is_rounded
from .structure import SET_SIGNS, Group, Sides, read, split

_LATEX = {"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "=", "∈": "\\in ", "∪": "\\cup ", "⦃": "\\{", "⦄": "\\}"}
_POINTS = (Fraction(617, 521), Fraction(1409, 389), Fraction(211, 673))
"""Values for the variables; expressions that differ at one of them are not the same."""


def parsed(text: str) -> Any:
    """Return the sympy object of a normalized expression, by math-verify's parser.

    Raises:
        Exception: Any class of exception that the parser raises for what it cannot read.
    """
    for symbol, latex in _LATEX.items():
        text = text.replace(symbol, latex)
    if TRIGONOMETRIC.search(text):  # 60^\circ -> 60 pi / 180
        text = re.sub(r"(\d+)\s*\^\s*\{?\s*\\circ\s*\}?", r"{(\\frac{\1\\pi}{180})}", text)
    # 2(3) -> 2\times (3): the parser reads it as a mixed number
    text = re.sub(r"((?<![\w.^{])[\d.]+|\)|\\pi)\s*(?=\()", r"\1\\times ", text)
    # 1.5 -> \frac{15}{10}: math-verify takes floats for equal that differ in the seventh place
    text = re.sub(r"(?<![\w.])(\d*)\.(\d+)", lambda m: f"{{\\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}}}}", text)
    expression = latex2sympy(
        text,
        is_real=True,
        normalization_config=NormalizationConfig(malformed_operators=True, boxed="none"),
        conversion_config=ConversionConfig(lowercase_symbols=False),  # by default R^2 - r^2 is 0
    )
    if not isinstance(expression, Basic):  # a matrix with variables in it
        return expression
    symbols = expression.atoms(Symbol)
    return expression.xreplace({s: I if s.name == "i" else Symbol(s.name, real=True) for s in symbols})


def parsed_set(text: str) -> Any:
    """Return the sympy set of intervals and finite sets that are joined by symbols such as ``∪``."""
    sides, _ = split(text, frozenset("∪"))
    if len(sides) > 1:
        return Union(*map(parsed_set, sides))
    sides, operators = split(text, SET_SIGNS)
    if operators:  # the last operator is applied last
        right = sides[-1]
        left = parsed_set(text[: len(text) - len(right)].rstrip().removesuffix(operators[-1]).strip())
        return Intersection(left, parsed_set(right)) if operators[-1] == "\\cap" else left - parsed_set(right)
    group = read(text)
    if not isinstance(group, Group):
        return parsed(text)
    items = [parsed(item) for item in group.items]
    if group.brackets == "⦃⦄":
        return FiniteSet(*items)
    start, end = items
    return Interval(start, end, group.brackets[0] == "(", group.brackets[1] == ")")


def is_rounding(decimal: str, expression: str) -> bool:
    """Return whether a decimal of enough decimals is the rounding of a constant expression."""
    if not re.fullmatch(rf"[-+]?\d*\.\d{{{DECIMALS},}}", decimal):
        return False
    constant = parsed(expression)
    if getattr(constant, "free_symbols", None):
        return False
    value = constant.evalf(len(decimal) + 10)
    return bool(value.is_Float or value.is_Integer) and is_rounded(decimal, expression, Fraction(str(value)))


def same_expression(a: str, b: str) -> bool:
    """Return whether two expressions are equal; the second is the gold one."""
    try:
        x, y = parsed(a), parsed(b)
    except Exception:  # the parser has no exception class of its own
        return False
    if isinstance(x, Expr) and isinstance(y, Expr):
        if any(_differ(x, y, point) for point in _POINTS):
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
    """Return whether two expressions have different values, both finite, with the variables near ``point``."""
    values = _values_near(point, x, y)
    x, y = x.subs(values), y.subs(values)
    first, second = x.evalf(30), y.evalf(30)
    if not all(value.is_number and value.is_finite for value in (first, second)):
        return False
    return bool(abs((x - y).evalf(30)) > max(abs(first), abs(second)) * 1e-20)


def _values_near(point: Fraction, x: Any, y: Any) -> dict[Any, Any]:
    """Return values for the variables of two expressions, near ``point`` and at irregular distances."""
    variables = sorted(x.free_symbols | y.free_symbols, key=str)
    return {v: Rational(point.numerator + 17 * i**2, point.denominator + i) for i, v in enumerate(variables)}


def same_relation(a: Sides, b: Sides) -> bool:
    """Return whether two equations or inequalities have the same meaning.

    They have if the differences of their sides are multiples of each other, positive ones for an inequality.
    """
    (left_a, relation, right_a), (left_b, relation_b, right_b) = a, b
    if relation != relation_b:
        return False
    x, y = parsed(f"({left_a})-({right_a})"), parsed(f"({left_b})-({right_b})")
    if not isinstance(x, Expr) or not isinstance(y, Expr) or x.free_symbols != y.free_symbols:
        return False
    pairs = ([side.subs(_values_near(point, x, y)) for side in (x, y)] for point in _POINTS)
    first, second = next((pair for pair in pairs if 0 not in pair), (S.Zero, S.One))  # a point may lie on the curve
    factor = (first / second).doit()
    if not factor.is_number or not factor.is_finite or factor.is_zero:
        return False
    if relation in "<≤" and not factor.is_positive:
        return False
    y = factor * y
    return not any(_differ(x, y, point) for point in _POINTS) and verify(y, x, timeout_seconds=None)
