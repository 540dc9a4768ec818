"""Values and their units."""

import re
from fractions import Fraction

from .notation import TRIGONOMETRIC, is_text, normalize
from .numbers import number

_SIZES = {
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
"""Of each kind of unit the names, without the s of a plural, followed by their size. Feet and metres are two kinds."""


def _units() -> dict[str, tuple[str, Fraction]]:
    units: dict[str, tuple[str, Fraction]] = {}
    waiting: list[str] = []
    for kind, sizes in _SIZES.items():
        for word in sizes.split():
            waiting.append(word)
            if word[0].isdigit():
                units.update(dict.fromkeys(waiting[:-1], (kind, Fraction(word))))
                waiting.clear()
    return units


_UNITS = _units()
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}

_UNIT = re.compile(
    r"(?P<value>.*\S)\s*(?P<unit>\\text\{[^{}]*\}\s*(?:\^\{?[23]\}?)?"
    r"|%|\^\s*\{?\s*\\circ\s*\}?\s*(?:\\text\{\s*[CF]\w*\s*\}|[CF](?![A-Za-z]))?)"
)
_UNIT_IN_WORDS = re.compile(
    r"(?P<value>.*(?:[\d})]|\\pi))(?P<space>\s*)(?P<unit>[A-Za-z]+(?:[ ./]+[A-Za-z]+|\^\{?[23]\}?)*)"
)


def quantity(text: str) -> tuple[str, str]:
    """The value and its unit, which may be empty: ``180\\text{ miles}``, ``90^\\circ``, ``5 cm``, ``2 red hats``."""
    if TRIGONOMETRIC.search(text):  # the degrees are an angle's in it
        return text, ""
    if (match := _UNIT.fullmatch(text)) and not is_text(match["value"]):
        return match["value"], re.sub(r"\\text|[{}\s]+$", "", match["unit"]).replace("{", " ").replace("}", "")
    if match := _UNIT_IN_WORDS.fullmatch(text):
        words = re.findall("[A-Za-z]+", match["unit"])
        apart = bool(match["space"]) and (match["value"][-1] != "}" or len(words[0]) > 1)
        known = measured(match["unit"]) is not None and (apart or len(words[0]) > 1)
        if known or (apart and any(len(word) > 2 for word in words)):
            return match["value"], match["unit"]
    return text, ""


def is_quantity(answer: str) -> bool:
    """Whether an answer is one value with a unit, such as ``5 miles per hour``."""
    value, unit = quantity(normalize(answer))
    return bool(unit) and not re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,}", value)


def is_numeric(answer: str) -> bool:
    """Whether an answer is a number, perhaps with a unit."""
    return number(quantity(normalize(answer))[0]) is not None


def measured(unit: str) -> tuple[dict[str, int], Fraction] | None:
    """The powers of a unit's dimensions, and its size; ``None`` if a word of it is unknown."""
    text = re.sub("[{}]", "", unit.lower()).replace(".", " ").replace("mph", "mile per hour").replace("\\circ", "circ ")
    powers: dict[str, int] = {}
    size, sign, power = Fraction(1), 1, 1
    words = re.findall(r"[a-z]+(?:\^\s*[23])?|%|/", text)
    for position, word in enumerate(words):
        name, _, raised = word.partition("^")
        if name in ("per", "/"):
            sign = -1
        elif name in _POWERS:
            power = _POWERS[name]
        elif name in ("circ", "degree", "degrees") and words[position + 1 :]:
            continue  # of Celsius, of Fahrenheit
        else:
            known = _UNITS.get(name) or _UNITS.get(name.removesuffix("s"))
            if known is None:
                return None
            exponent = sign * int(raised or power)
            powers[known[0]] = powers.get(known[0], 0) + exponent
            size *= known[1] ** exponent
            power = 1
    return powers, size


_PLURAL = re.compile("(?:y|ies|e?s?)$")


def akin(a: str, b: str) -> bool:
    """Whether words that are no known units may mean the same: ``hats`` and ``red hats``, ``cm`` and ``units``."""
    first, second = ({_PLURAL.sub("", word) for word in re.findall("[a-z]+", unit.lower())} for unit in (a, b))
    return bool(first & second) or (
        _PLURAL.sub("", "unit") in first | second and not {"%", "circ", "degree"} & (first | second | {a, b})
    )
