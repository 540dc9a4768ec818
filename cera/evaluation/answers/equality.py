"""When two answers are the same, such as ``\\frac{1}{2}`` and ``0.5``, or ``x \\in (1, 2]`` and ``1 < x \\le 2``.

What an answer is made of says what may differ: the order of roots may, that of coordinates not. In the end it is made
of text, quantities, numbers, and expressions, of which math-verify judges the last.
"""

# ruff: noqa: RUF001  (the signs of set theory are alike to letters)

import logging
import re
import string
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from .notation import LONGEST, THOUSANDS, is_text, normalize, plain
from .numbers import APART, same_in_base, same_number
from .structure import (
    SET_SIGNS,
    Answer,
    Group,
    Matrix,
    Named,
    Relation,
    Sets,
    read,
    signs,
    split,
)
from .units import akin, measured, quantity

_CLOCK = re.compile(r"(\d{1,2})(?=\s*[:ap])(?:\s*:\s*(\d\d))?(?:\s*:\s*(\d\d))?\s*(?:([ap])\.?\s?m)?\.?", re.IGNORECASE)
_CHOICE = re.compile(
    r"(?:(?i:(?:the )?(?:option|choice)|I (?:choose|pick)) )?"
    r"(?:\(([A-Za-z])\)|\(([A-Z])\):?\s?\d.*|\(?([A-Z])[).:]+(?: .+)?|([A-Z]))"
)


def check(prediction: str, gold: str) -> bool:
    """Whether two bare answers are the same.

    Equal are: any two forms of a number, expression, equation (up to a factor) or inequality that have the same value;
    lists and sets in any order; an interval and its inequality; a value and ``x = value``; an answer and the same one
    with a unit, a percent or degree sign, or a base, which the question gave. Not equal are: tuples in another order,
    other brackets of an interval, units that measure something else, a decimal and what it is near to.

    May run for ever, or take all memory, on what a model writes: ``is_correct`` sees to it that it does not.
    """
    if max(len(prediction), len(gold)) > LONGEST:
        return False
    readings = [(normalize(prediction), normalize(gold))]
    if any(",0" not in match[0] for match in THOUSANDS.finditer(f"{prediction}; {gold}")):  # "1,234" is one, or two
        readings.append((normalize(prediction.replace(",", ", ")), normalize(gold.replace(",", ", "))))
    return any(bool(a and b) and _same(signs(a), signs(b)) for a, b in readings)


def settled(prediction: str, gold: str) -> bool | None:
    """What ``check`` says, where that is plain at once: short texts written alike, and plain numbers. Else ``None``."""
    if max(len(prediction), len(gold)) > LONGEST:
        return False
    a, b = normalize(prediction), normalize(gold)
    if not a or not b:
        return False
    if a == b:
        return True
    return None if THOUSANDS.search(f"{prediction} {gold}") else same_number(a, b)


def _same(a: str, b: str) -> bool:
    if a == b:
        return True
    if (letters := _choices(a, b)) is not None:
        return letters
    x, y = read(a), read(b)
    if {type(x), type(y)} == {Matrix, str} and "\\begin" in a and "\\begin" in b:  # a matrix times a number
        from .expressions import same_expression

        return same_expression(a, b)
    return _same_answer(x, y)


def _choices(a: str, b: str) -> bool | None:
    """For options of a question, such as ``B``, ``(b)`` and ``(B) 12``: whether they are the same."""
    found = [_CHOICE.fullmatch(plain(text)) for text in (a, b)]
    if not all(found) or not any(match and len(match[0]) > 1 for match in found):
        return None
    first, second = (next(letter for letter in match.groups() if letter) for match in found if match)
    return first.upper() == second.upper()


def _same_answer(a: Answer, b: Answer) -> bool:
    from .expressions import same_expression, same_relation

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
            return (
                a.fence == b.fence
                and [len(row) for row in a.rows] == [len(row) for row in b.rows]
                and all(_same(x, y) for x, y in zip(sum(a.rows, ()), sum(b.rows, ()), strict=True))
            )
        case Sets(), Group("", items):  # x < 1 or x > 2
            return _same_set(a.text, "∪".join(_value(item) for item in items))
        case Group("", items), Sets():
            return _same_set("∪".join(_value(item) for item in items), b.text)
        case Sets(), (Sets() | Group()):
            return _same_set(
                a.text, b.text if isinstance(b, Sets) else b.brackets[0] + ",".join(b.items) + b.brackets[1]
            )
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
    return answer.value if isinstance(answer := read(item), Named) else item


def _same_group(a: Group, b: Group) -> bool:
    if a.brackets == b.brackets == "⦃⦄":
        return all(any(_same(x, y) for y in b.items) for x in a.items) and all(
            any(_same(x, y) for x in a.items) for y in b.items
        )
    if len(a.items) != len(b.items):
        return False
    if {a.brackets, b.brackets} <= {"", "⦃⦄"} and _names(a) == _names(b):
        return _in_any_order(a.items, b.items)
    if a.brackets != b.brackets and {a.brackets, b.brackets} != {"", "()"}:
        return False
    return all(_same(x, y) for x, y in zip(a.items, b.items, strict=True))


def _names(group: Group) -> bool:
    """Whether it gives values to several names: their order is the one in which values without names are given."""
    names = {item.name for item in map(read, group.items) if isinstance(item, Named)}
    return len(names) > 1


def _in_any_order(a: Sequence[str], b: Sequence[str]) -> bool:
    left = list(b)
    for x in a:
        found = next((i for i, y in enumerate(left) if _same(x, y)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _same_value(a: str, b: str) -> bool:
    if _close(a) == _close(b):
        return True
    if (clocks := [_CLOCK.fullmatch(plain(text)) for text in (a, b)]) and all(clocks):
        return _same_time(*(match.groups() for match in clocks if match))
    ratios = [text.split(":") for text in (a, b)]
    if max(map(len, ratios)) > 1:
        x, y = ([f"\\frac{{{terms[0]}}}{{{term}}}" for term in terms[1:]] or terms for terms in ratios)
        return len(x) == len(y) and not re.search(r":\s*0\d", f"{a} {b}") and all(map(_same, x, y))
    if (bases := same_in_base(plain(a), plain(b))) is not None:
        return bases
    (value_a, unit_a), (value_b, unit_b) = quantity(a), quantity(b)
    if unit_a or unit_b:
        return _same_quantity(value_a, unit_a, value_b, unit_b)
    if is_text(a) or is_text(b):
        return _spoken(a) == _spoken(b)
    if "\\infty" in (one := _close(a).lstrip("+"), other := _close(b).lstrip("+")):
        return one == other
    if APART.search(a) or APART.search(b):
        return False
    numbers = same_number(a, b)
    if numbers is not None:
        return numbers
    from .expressions import is_rounding, same_expression

    return is_rounding(a, b) or is_rounding(b, a) or same_expression(a, b)


def _close(text: str) -> str:
    """Without spaces, except between digits."""
    return re.sub(r"(?<!\d) | (?!\d)", "", plain(text))


def _spoken(text: str) -> str:
    kept = "".join(" " if character in string.punctuation else character for character in plain(text))
    return " ".join(kept.casefold().split())


def _same_time(a: tuple[str | None, ...], b: tuple[str | None, ...]) -> bool:
    """Whether two times are one of the day; the half that only one of them gives is the question's."""
    (hour_a, *rest_a, half_a), (hour_b, *rest_b, half_b) = a, b
    if [int(part or 0) for part in rest_a] != [int(part or 0) for part in rest_b]:
        return False
    same = _hour(hour_a, half_a) == _hour(hour_b, half_b)
    return same or (bool(half_a) != bool(half_b) and int(hour_a or 0) == int(hour_b or 0))


def _hour(hour: str | None, half: str | None) -> int:
    return int(hour or 0) % 12 + 12 * (half.lower() == "p") if half else int(hour or 0)


def _same_quantity(value_a: str, unit_a: str, value_b: str, unit_b: str) -> bool:
    """Values of the same unit; one that is missing is the other's. A percentage may also be given as its hundredth."""
    a, b = measured(unit_a) if unit_a else None, measured(unit_b) if unit_b else None
    if a and b and a[0] != b[0]:
        return False
    if unit_a and unit_b and (a is None or b is None) and not akin(unit_a, unit_b):
        return False
    if _same(value_a, value_b) and (not a or not b or a[1] == b[1]):
        return True
    if a and b and a[1] != b[1]:
        return _same(f"({value_a})\\times {_written(a[1])}", f"({value_b})\\times {_written(b[1])}")
    percent = [unit == "%" for unit in (unit_a, unit_b)]
    if percent == [True, False] and not unit_b:
        return _same(f"\\frac{{{value_a}}}{{100}}", value_b)
    if percent == [False, True] and not unit_a:
        return _same(value_a, f"\\frac{{{value_b}}}{{100}}")
    return False


def _written(size: Fraction) -> str:
    return f"\\frac{{{size.numerator}}}{{{size.denominator}}}"


def _same_set(a: str, b: str) -> bool:
    parts, others = (split(text, frozenset("∪"))[0] for text in (a, b))
    if len(parts) > 1 and len(others) > 1 and _in_any_order(parts, others):
        return True
    x, y = _set(a), _set(b)
    return x == y or bool(x.symmetric_difference(y).is_empty)


def _set(text: str) -> Any:
    """The sympy set of intervals and finite sets, with signs between them."""
    from sympy import FiniteSet, Intersection, Interval, Union

    from .expressions import parsed

    sides, _ = split(text, frozenset("∪"))
    if len(sides) > 1:
        return Union(*map(_set, sides))
    sides, between = split(text, SET_SIGNS)
    if between:
        right = sides[-1]
        whole = _set(text[: len(text) - len(right)].rstrip().removesuffix(between[-1]).strip())
        return Intersection(whole, _set(right)) if between[-1] == "\\cap" else whole - _set(right)
    group = read(text)
    if not isinstance(group, Group):
        return parsed(text)
    items = [parsed(item) for item in group.items]
    if group.brackets == "⦃⦄":
        return FiniteSet(*items)
    start, end = items
    return Interval(start, end, group.brackets[0] == "(", group.brackets[1] == ")")


def warm_up() -> None:
    """Load and compile what a first comparison would wait for."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no limit of its own
    for a, b in (
        (r"\frac{x^2-1}{x-1}", "x+1"),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
        (r"2\sin x\cos x+\log_{2} 8", r"\sin(2x)+3"),
        ("y=2x+1", "2x-y+1=0"),
        (r"e^{i\pi}\cdot 5!", "-120"),
        ("2x+1>y", "y<2x+1"),
    ):
        check(a, b)
