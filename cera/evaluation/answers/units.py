"""Separates values from their units, and compares units.

>>> quantity("60 miles per hour")
('60', 'miles per hour')
>>> measured("km").size, measured("miles per hour") == measured("mph"), measured("hats")
(Fraction(1000, 1), True, None)
"""

import re
from fractions import Fraction
from typing import NamedTuple

from .labels import same_time
from .notation import LONGEST, TRIGONOMETRIC, is_text, normalize
from .numbers import number

_UNITS_BY_DIMENSION = {
    "metre": "mm millimeter millimetre 0.001 cm centimeter centimetre 0.01 dm decimeter decimetre 0.1 m meter metre 1 "
    "km kilometer kilometre 1000",
    "foot": "in inch inche 1/12 ft foot feet 1 yd yard 3 mi mile 5280",
    "gram": "mg milligram 0.001 g gram 1 kg kilogram 1000",
    "pound": "oz ounce 1/16 lb pound 1 ton 2000",
    "second": "s sec second 1 min minute 60 h hr hour 3600 day 86400 week 604800",
    "month": "month 1 year yr 12",
    "litre": "ml milliliter millilitre 0.001 l liter litre 1",
    "gallon": "quart 1/4 gallon gal 1",
    "acre": "acre 1",
    "dollar": "cent 0.01 dollar usd 1",
    "euro": "euro 1",
    "degree": "degree deg circ 1",
    "radian": "radian rad 1",
    "celsius": "celsius c 1",
    "fahrenheit": "fahrenheit f 1",
    "percent": "% 1",
}
"""Dimension -> names of its units, without the s of a plural, each list of names followed by their size.

Feet and metres are two dimensions: an answer in the other is not the one that was asked for.
"""


def _read_units() -> dict[str, tuple[str, Fraction]]:
    """Return name -> (dimension, size)."""
    units: dict[str, tuple[str, Fraction]] = {}
    names: list[str] = []
    for dimension, entries in _UNITS_BY_DIMENSION.items():
        for entry in entries.split():
            if entry[0].isdigit():
                units.update(dict.fromkeys(names, (dimension, Fraction(entry))))
                names.clear()
            else:
                names.append(entry)
    return units


_UNITS = _read_units()
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}

_VALUE_AND_UNIT = re.compile(  # 5\text{ cm}^2 | 50% | 90^\circ | 72^\circ\text{F}
    r"(?P<value>.*\S)\s*(?P<unit>\\text\{[^{}]*\}\s*(?:\^\{?[23]\}?)?"
    r"|%|\^\s*\{?\s*\\circ\s*\}?\s*(?:\\text\{\s*[CF]\w*\s*\}|[CF](?![A-Za-z]))?)"
)
_VALUE_AND_WORDS = re.compile(  # 5 miles per hour | 3\pi cm^2
    r"(?P<value>.*(?:[\d})]|\\pi))(?P<space>\s*)(?P<unit>[A-Za-z]+(?:[ ./]+[A-Za-z]+|\^\{?[23]\}?)*)"
)
_RATIO = re.compile(r"\d+(?:\.\d+)?(?:\s?:\s?\d+(?:\.\d+)?)+")  # 2:3
_PLURAL = re.compile("(?:y|ies|e?s?)$")  # berry, berries; box, boxes


class UnitMeasure(NamedTuple):
    """What a unit measures.

    Attributes:
        powers: Dimension -> its power, such as ``{"foot": 1, "second": -1}``.
        size: The unit in terms of the dimensions' first units.
    """

    powers: dict[str, int]
    size: Fraction


def quantity(text: str) -> tuple[str, str]:
    r"""Return the value and the unit of a normalized answer, such as ``180\text{ miles}``, ``5 cm`` or ``2 red hats``.

    The unit is empty if there is none.
    """
    if TRIGONOMETRIC.search(text):  # the degrees belong to an angle in it
        return text, ""
    if (match := _VALUE_AND_UNIT.fullmatch(text)) and not is_text(match["value"]):
        return match["value"], re.sub(r"\\text|[{}\s]+$", "", match["unit"]).replace("{", " ").replace("}", "")
    if match := _VALUE_AND_WORDS.fullmatch(text):
        words = re.findall("[A-Za-z]+", match["unit"])
        separate = bool(match["space"]) and (match["value"][-1] != "}" or len(words[0]) > 1)
        is_known = measured(match["unit"]) is not None and (separate or len(words[0]) > 1)
        if is_known or (separate and any(len(word) > 2 for word in words)):
            return match["value"], match["unit"]
    return text, ""


def is_quantity(answer: str) -> bool:
    """Return whether an answer is one value with a unit, such as ``5 miles per hour``."""
    value, unit = quantity(normalize(answer))
    return bool(unit) and not re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,}", value)


def is_numeric(answer: str) -> bool:
    """Return whether an answer is a number, perhaps with a unit, a ratio, or a time of the day."""
    if len(answer) > LONGEST:
        return False
    text = normalize(answer)
    is_ratio = _RATIO.fullmatch(text) is not None
    return is_ratio or same_time(text, text) is not None or number(quantity(text)[0]) is not None


def measured(unit: str) -> UnitMeasure | None:
    """Return what a unit measures, or ``None`` if one of its words is unknown."""
    text = re.sub("[{}]", "", unit.lower()).replace(".", " ").replace("mph", "mile per hour").replace("\\circ", "circ ")
    powers: dict[str, int] = {}
    size, sign, power = Fraction(1), 1, 1
    words = re.findall(r"[a-z]+(?:\^\s*[23])?|%|/", text)
    for position, word in enumerate(words):
        name, _, exponent = word.partition("^")
        if name in ("per", "/"):
            sign = -1
        elif name in _POWERS:
            power = _POWERS[name]
        elif name in ("circ", "degree", "degrees") and words[position + 1 :]:
            continue  # Celsius or Fahrenheit follows
        else:
            known = _UNITS.get(name) or _UNITS.get(name.removesuffix("s"))
            if known is None:
                return None
            dimension, unit_size = known
            signed_power = sign * int(exponent or power)
            powers[dimension] = powers.get(dimension, 0) + signed_power
            size *= unit_size**signed_power
            power = 1
    return UnitMeasure(powers, size)


def may_be_same_unit(a: str, b: str) -> bool:
    """Return whether two units, at least one of them unknown, may be the same.

    They are if they share a word, such as ``hats`` and ``red hats``, or if one says ``units``, as in ``cm`` and
    ``units``; a percentage and an angle have no such units.
    """
    words_a, words_b = ({_PLURAL.sub("", word) for word in re.findall("[a-z]+", unit.lower())} for unit in (a, b))
    if words_a & words_b:
        return True
    words = words_a | words_b
    return _PLURAL.sub("", "unit") in words and not {"%", "circ", "degree"} & (words | {a, b})
