r"""The numbers in a text, in all the ways in which texts write them: the only grammar of numbers outside of formulas.

>>> last_number("That makes 12 500"), last_number("She needs 2 1/2 cups."), last_number("They share it 2:3.")
('12 500', '2 1/2', '2:3')
>>> last_number("It is 5 million."), last_number(r"It is $\frac{3}{4}$ of it."), last_number("forty-two apples")
('5 million', '\\frac{3}{4}', 'forty-two')
"""

# ruff: noqa: RUF001  (numbers have typographic signs)

import re
from collections import deque

from .notation import LONGEST
from .number_words import NUMBER_WORDS, value

_FRACTION = r"\\[dt]?frac\s?(?:\{\s?-?\d+\s?\}\s?\{\s?\d+\s?\}|\d\s?\d)"  # \frac{3}{4} | \frac34
_SIGN = "[¼-¾⅐-⅞]"  # ½
_MIXED = (
    rf"\d{{1,9}}(?:[^\S\n]{{1,3}}\d{{1,9}}/\d{{1,9}}(?![\d/])|\s?(?:{_FRACTION}|{_SIGN}))"  # 2 1/2 | 2\frac{1}{2} | 2½
)
_GROUPED = (  # 1,234.50 | 12 500 | 1{,}000 | 12\,345 | 10,\!080
    r"\d{1,3}(?P<separator>,|\{,\}|,?\\!,?|\\,|[ \u00a0\u2009\u202f])\d{3}(?:(?P=separator)\d{3})*(?!\d)(?:\.\d+)?"
)
_DECIMAL = r"(?:\d+(?:\.\d+)?|\.\d+)"
_RATIO = rf"{_DECIMAL}(?:(?::|\s:\s){_DECIMAL})+"  # 2:3 | 3:45 | 14:30:05
_POWER = (  # e5 | \times 10^{5} | ^{10} | ⁶
    r"[eE][-+]?\d+(?!\w)|\s?(?:\\times|\\cdot|[×·⋅*x])\s?10\s?(?:\^\s?(?:\{\s?[-+−]?\d+\s?\}|[-+−]?\d+)|[⁰¹²³⁴-⁹⁺⁻]+)"
    r"|\^\s?(?:\{\s?[-+−]?\d+\s?\}|[-+−]?\d+)|[⁰¹²³⁴-⁹⁺⁻]+"
)
_SCALE = r"\s(?:thousand|million|billion|trillion)(?![a-z])"
NUMBER = (  # -$1,234.50, but not the 2 of x_2 or x^{2}, or the -3 of 10-3
    rf"(?<!not )(?:(?<![\w)}}\]])[-−]|(?<![A-Za-z])(?i:negative)\s)?\\?\$?-?(?:{_FRACTION}"
    rf"|(?<![A-Za-z_^\d.])(?<![_^]\{{)(?:{_MIXED}|{_RATIO}|{_SIGN}|(?:{_GROUPED}|{_DECIMAL})(?:/\d+|{_POWER})?)"
    rf"(?:{_SCALE})?)(?:\s?\\?%|\s(?:percent|pct)(?![a-z])|\s?[ap](?:\.\s?m\.|m(?![A-Za-z])))?"
)
"""The pattern of a number; it has a group, so that a pattern can contain it only once."""

_NUMBER = re.compile(NUMBER)
_NUMBER_IN_WORDS = re.compile(NUMBER_WORDS)
_LAST_DIGIT = re.compile(rf"(?s).*(?:\d|{_SIGN})")
_BEFORE_OPERAND = re.compile(r"(?:(?:sqrt|sqrt\[\d\]|frac|\})\s?\{|√)$")
_AFTER_OPERAND = re.compile(r"\s?(?:\\(?:sqrt|pi)|[√π])")
"""What precedes or follows a number that is only a part of the value: ``2\\sqrt{3}``."""
_AFTER = 20
"""Number of characters after the last digit that may belong to its number, such as those of ``million``."""
_LARGEST_PRONOUN = 10
"""In prose, words such as "one" and "two" often stand for something else than the number that is asked for."""


def last_number(text: str) -> str | None:
    """Return the last number of a text, of which ``LONGEST`` characters up to the last digit are searched.

    ``None`` if there is none, or if it is only an operand, as in ``2\\sqrt{3}``. A number in words counts if it is
    above ten and the text has no digits.
    """
    digit = _LAST_DIGIT.match(text)
    if digit is None:
        numbers = deque(_NUMBER_IN_WORDS.finditer(text, max(0, len(text) - LONGEST)), maxlen=1)
        return numbers[0][0] if numbers and value(numbers[0][0]) > _LARGEST_PRONOUN else None
    end = digit.end()
    numbers = deque(_NUMBER.finditer(text, max(0, end - LONGEST), end + _AFTER), maxlen=1)
    if not numbers:
        return None
    start, end = numbers[0].span()
    if _BEFORE_OPERAND.search(text[max(0, start - 10) : start]) or _AFTER_OPERAND.match(text, end):
        return None
    return numbers[0][0].replace("\\$", "").replace("$", "")
