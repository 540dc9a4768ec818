"""Decides whether two answers are the same, such as ``\\frac{1}{2}`` and ``0.5``.

    >>> check(r"(-\\infty, 1) \\cup (2, \\infty)", "x < 1 or x > 2")
    True

The structure of an answer defines what may differ: the order of roots may, that of coordinates may not. Structures
consist of texts, quantities, numbers and expressions; math-verify compares the last of these.
"""

# ruff: noqa: RUF001  (the symbols of set theory resemble letters)

import logging
import re
import string
from collections.abc import Sequence
from fractions import Fraction

from .expressions import is_rounding, parsed_set, same_expression, same_relation
from .labels import same_option, same_time
from .notation import LONGEST, THOUSANDS, is_text, normalize, plain
from .numbers import SEPARATE_NUMBERS, same_in_base, same_number
from .structure import Answer, Group, Matrix, Named, Relation, Sets, read, split, with_both_signs
from .units import may_be_same_unit, measured, quantity


def check(prediction: str, gold: str) -> bool:
    """Return whether two bare answers are the same.

    These are equal: any two forms of a number, expression, equation (up to a factor) or inequality of one value; lists
    and sets in any order; an interval and its inequality; a value and ``x = value``; an answer and the same with a
    unit, a percent or degree sign, or a base, which the question gave. These are not equal: tuples in another order,
    intervals with other brackets, units of different dimensions, a decimal and what it approximates.

    Some inputs take this for ever, or all memory; ``judge`` limits both.
    """
    if max(len(prediction), len(gold)) > LONGEST:
        return False
    readings = [(normalize(prediction), normalize(gold))]
    if any(",0" not in match[0] for match in THOUSANDS.finditer(f"{prediction}; {gold}")):  # 1,234 may be a list
        readings.append((normalize(prediction.replace(",", ", ")), normalize(gold.replace(",", ", "))))
    return any(bool(a and b) and _same(with_both_signs(a), with_both_signs(b)) for a, b in readings)


def _same(a: str, b: str) -> bool:
    if a == b:
        return True
    if (same := same_option(a, b)) is not None:
        return same
    x, y = read(a), read(b)
    if {type(x), type(y)} == {Matrix, str} and "\\begin" in a and "\\begin" in b:  # a matrix times a number
        return same_expression(a, b)
    return _same_answer(x, y)


def _same_answer(a: Answer, b: Answer) -> bool:
    match a, b:
        case Named(), Named():
            if a.name.replace(" ", "") == b.name.replace(" ", "") and _same(a.value, b.value):
                return True
            return a.sides is not None and b.sides is not None and same_relation(a.sides, b.sides)
        case ((Named() | Relation()), (Named() | Relation())):
            if a.sides and b.sides:
                return same_relation(a.sides, b.sides)
            return isinstance(a, Relation) and isinstance(b, Relation) and same_expression(a.text, b.text)
        case Named(), _:
            return _same_answer(read(a.value), b)
        case _, Named():
            return _same_answer(a, read(b.value))
        case Group(), Group():
            return _same_group(a, b)
        case Matrix(), Matrix():
            return _same_matrix(a, b)
        case Sets(), Group("", items):  # x < 1 or x > 2
            return _same_set(a.text, "∪".join(_value(item) for item in items))
        case Group("", items), Sets():
            return _same_set("∪".join(_value(item) for item in items), b.text)
        case Sets(), Sets():
            return _same_set(a.text, b.text)
        case Sets(), Group():
            return _same_set(a.text, b.brackets[0] + ",".join(b.items) + b.brackets[1])
        case Group(), Sets():
            return _same_answer(b, a)
        case Group("⦃⦄", [item]), str():
            return _same(item, b)
        case str(), Group("⦃⦄", [item]):
            return _same(a, item)
        case str(), str():
            return _same_value(a, b)
    return False


def _value(item: str) -> str:
    """Return the value of ``x = value``, or the item itself if it names nothing."""
    answer = read(item)
    return answer.value if isinstance(answer, Named) else item


def _same_matrix(a: Matrix, b: Matrix) -> bool:
    if a.fence != b.fence or [len(row) for row in a.rows] != [len(row) for row in b.rows]:
        return False
    return all(_same(x, y) for x, y in zip(sum(a.rows, ()), sum(b.rows, ()), strict=True))


def _same_group(a: Group, b: Group) -> bool:
    if a.brackets == b.brackets == "⦃⦄":  # elements of a set may be repeated
        return all(any(_same(x, y) for y in b.items) for x in a.items) and all(
            any(_same(x, y) for x in a.items) for y in b.items
        )
    if len(a.items) != len(b.items):
        return False
    if {a.brackets, b.brackets} <= {"", "⦃⦄"} and _has_names(a) == _has_names(b):
        return _in_any_order(a.items, b.items)
    if a.brackets != b.brackets and {a.brackets, b.brackets} != {"", "()"}:
        return False
    return all(_same(x, y) for x, y in zip(a.items, b.items, strict=True))


def _has_names(group: Group) -> bool:
    """Return whether a group gives values to several names, whose order is then that of values without names."""
    answers = [read(item) for item in group.items]
    return len({answer.name for answer in answers if isinstance(answer, Named)}) > 1


def _in_any_order(a: Sequence[str], b: Sequence[str]) -> bool:
    remaining = list(b)
    for x in a:
        position = next((i for i, y in enumerate(remaining) if _same(x, y)), None)
        if position is None:
            return False
        del remaining[position]
    return not remaining


def _same_set(a: str, b: str) -> bool:
    parts_a, parts_b = (split(text, frozenset("∪"))[0] for text in (a, b))
    if len(parts_a) > 1 and len(parts_b) > 1 and _in_any_order(parts_a, parts_b):
        return True
    x, y = parsed_set(a), parsed_set(b)
    return x == y or bool(x.symmetric_difference(y).is_empty)


def _same_value(a: str, b: str) -> bool:
    if _without_spaces(a) == _without_spaces(b):
        return True
    if (same := same_time(a, b)) is not None:
        return same
    if ":" in a or ":" in b:  # a ratio, which is the same only in the same terms
        return False
    if (same := same_in_base(plain(a), plain(b))) is not None:
        return same
    (value_a, unit_a), (value_b, unit_b) = quantity(a), quantity(b)
    if unit_a or unit_b:
        return _same_quantity(value_a, unit_a, value_b, unit_b)
    if is_text(a) or is_text(b):
        return _words(a) == _words(b)
    x, y = (_without_spaces(text).lstrip("+") for text in (a, b))
    if "\\infty" in x or "\\infty" in y:
        return x == y
    if SEPARATE_NUMBERS.search(a) or SEPARATE_NUMBERS.search(b):
        return False
    if (same := same_number(a, b)) is not None:
        return same
    return is_rounding(a, b) or is_rounding(b, a) or same_expression(a, b)


def _without_spaces(text: str) -> str:
    """Return the plain text without spaces, except those between digits."""
    return re.sub(r"(?<!\d) | (?!\d)", "", plain(text))


def _words(text: str) -> list[str]:
    """Return the words of a text, without case and punctuation."""
    letters = "".join(" " if character in string.punctuation else character for character in plain(text))
    return letters.casefold().split()


def _same_quantity(value_a: str, unit_a: str, value_b: str, unit_b: str) -> bool:
    """Return whether two values with units are the same.

    A missing unit is that of the other value. A percentage may also be given as its hundredth.
    """
    a = measured(unit_a) if unit_a else None
    b = measured(unit_b) if unit_b else None
    if a and b and a.powers != b.powers:
        return False
    if unit_a and unit_b and (a is None or b is None) and not may_be_same_unit(unit_a, unit_b):
        return False
    if _same(value_a, value_b) and (not a or not b or a.size == b.size):
        return True
    if a and b and a.size != b.size:
        return _same(f"({value_a})\\times {_as_latex(a.size)}", f"({value_b})\\times {_as_latex(b.size)}")
    if unit_a == "%" and not unit_b:
        return _same(f"\\frac{{{value_a}}}{{100}}", value_b)
    if unit_b == "%" and not unit_a:
        return _same(value_a, f"\\frac{{{value_b}}}{{100}}")
    return False


def _as_latex(fraction: Fraction) -> str:
    return f"\\frac{{{fraction.numerator}}}{{{fraction.denominator}}}"


def warm_up() -> None:
    """Load and compile what the first comparisons would otherwise wait for."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it was given no time limit
    for a, b in (
        (r"\frac{x^2-1}{x-1}", "x+1"),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
        (r"2\sin x\cos x+\log_{2} 8", r"\sin(2x)+3"),
        ("y=2x+1", "2x-y+1=0"),
        (r"e^{i\pi}\cdot 5!", "-120"),
        ("2x+1>y", "y<2x+1"),
    ):
        check(a, b)
