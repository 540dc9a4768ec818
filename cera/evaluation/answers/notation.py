"""Rewrites an answer into one of the many ways in which LaTeX and plain text can write it.

>>> normalize(r"\\left(\\dfrac12, \\; 3\\right)")
'(\\\\frac{1}{2}, 3)'
"""

import re

from .rules_amounts import AMOUNTS, VALUES
from .rules_typesetting import ARGUMENTS, CHARACTERS, SPELLINGS, TYPESETTING
from .rules_words import WORDS

LONGEST = 2000
"""Maximum number of characters of an answer."""

GROUPS = (CHARACTERS, AMOUNTS, TYPESETTING, SPELLINGS, WORDS, ARGUMENTS, VALUES)
"""All rules, in the order in which they are applied."""

THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?![\d,])")
"""A number with separators, such as ``1,234``, which may also be several numbers."""

TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
"""A function of an angle, such as ``\\cos``."""

WORD_AS_TEXT = re.compile(r"\\text\{[A-Za-z]{2,}\}")
"""A word that is set as text, such as ``\\text{AB}``, and therefore no product of variables."""

_BALANCED = re.compile(r"(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*+\})*+")  # {a}{b}, but not }{
_BRACKETS = re.compile(r"[(\[⦃]|\\begin")


def normalize(answer: str) -> str:
    """Return an answer as rewritten by all rules, without what surrounds it; whitespace is single spaces."""
    text = answer.strip(" \t\r\n*`")
    if re.sub(r"\\\$", "", text).count("$") % 2:  # an odd number of signs: dollars, not the limits of a formula
        text = re.sub(r"(?<!\\)\$(?=\s*[\d.])", r"\\$", text)
    for group in GROUPS:
        text = group.apply(text)
    while (shorter := _unwrapped(text.lstrip(" ,;:").rstrip(" .,;:\\"))) != text:
        text = shorter
    if not _BRACKETS.search(text):  # within brackets, a comma separates coordinates
        text = THOUSANDS.sub(lambda match: re.sub("[, ]", "", match[0]), text)
    return text


def _unwrapped(text: str) -> str:
    r"""Return the text without the braces, or the ``\text{}``, around all of it; ``{1, 2}`` becomes a set."""
    for start in ("{", "\\text{"):
        if start == "\\text{" and WORD_AS_TEXT.fullmatch(text):
            return text
        if text.startswith(start) and text.endswith("}") and _BALANCED.fullmatch(text, len(start), len(text) - 1):
            inside = text[len(start) : -1].strip()
            return f"⦃{inside}⦄" if start == "{" and "," in inside else inside
    return text


def plain(text: str) -> str:
    r"""Return the text without the ``\text{}`` around parts of it: ``5\text{ cm}`` becomes ``5 cm``."""
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", text)


def is_text(text: str) -> bool:
    """Return whether an answer is words rather than a product of variables.

    Words have four letters, or three after a capital, or are ``yes``, ``no`` or ``odd``, or are set as text.
    """
    if WORD_AS_TEXT.fullmatch(text):
        return True
    spoken = plain(text)
    if re.search(r"[\\^_=+*/<>|{}]", spoken):
        return False
    words = re.findall(r"(?<![A-Za-z0-9])[A-Za-z]+(?![A-Za-z0-9])", spoken)
    return any(len(word) > 3 or re.fullmatch("[A-Z][A-Za-z]{2}|(?i:yes|no|odd)", word) for word in words)
