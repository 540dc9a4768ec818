"""Numbers in words: ``forty-two``, ``two thousand five hundred``.

>>> in_digits("one hundred and five apples"), in_digits("two-thirds of it, by no one-to-one map")
('105 apples', 'two-thirds of it, by no one-to-one map')
"""

import re

_ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_VALUES = {
    **{word: number for number, word in enumerate(("zero", *_ONES, *_TEENS))},
    **{word: 10 * number for number, word in enumerate(_TENS, start=2)},
    "a": 1,
}


def _any(words: tuple[str, ...]) -> str:
    return f"(?:{'|'.join(sorted(words, key=len, reverse=True))})"


_BELOW_100 = rf"(?:{_any(_TENS)}(?:[-\s]{_any(_ONES)}(?![a-z]))?|{_any((*_TEENS, *_ONES, 'zero'))})"
_SCALE = rf"\s{_any(tuple(_SCALES))}"
_BELOW_1000 = rf"(?:(?:{_any(_ONES)}|a)\shundred(?:(?:\sand)?\s{_BELOW_100}(?![a-z]))?|{_BELOW_100}|a(?={_SCALE}))"
NUMBER_WORDS = (
    rf"(?i:(?<![\\A-Za-z{{-])(?>{_BELOW_1000}(?:{_SCALE}(?:,?(?:\sand)?\s{_BELOW_1000}(?![a-z]))?)*)"
    r"(?![A-Za-z]|-[a-z]|\s(?:half|halves|third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth)))"
)
"""The pattern of a number in words, which is neither a part of another word nor the numerator of a fraction.

A word that is set as text, such as ``\\text{four}``, stays a word.
"""

_NUMBER_WORDS = re.compile(NUMBER_WORDS)


def value(words: str) -> int:
    """Return the number that a match of ``NUMBER_WORDS`` stands for."""
    total = part = 0
    for word in re.findall("[a-z]+", words.lower()):
        if word in _SCALES:
            total, part = total + part * _SCALES[word], 0
        elif word == "hundred":
            part *= 100
        elif word != "and":
            part += _VALUES[word]
    return total + part


def in_digits(text: str) -> str:
    """Return a text with the numbers in words as digits."""
    return _NUMBER_WORDS.sub(lambda match: str(value(match[0])), text)
