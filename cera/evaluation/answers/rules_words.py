"""Rules for words: those for sets and intervals, those between answers, and names of functions and constants."""

# ruff: noqa: RUF001  (the symbols of set theory resemble letters)

import re

from .rules import Rule, RuleGroup

FUNCTIONS = ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "exp", "log", "ln")
CONSTANTS = ("pi", "infty", "theta", "alpha", "beta")
NAMES = (*FUNCTIONS, *CONSTANTS, "sqrt")
"""Names that plain text writes in letters, and LaTeX as a command."""


def _bounded(match: re.Match[str]) -> str:
    """Return ``1<x<2`` for ``x > 1 and x < 2``, or the match if both bounds are on one side."""
    name, *bounds = match.groups()
    (lower_sign, low), (upper_sign, high) = sorted((bounds[:2], bounds[2:]), key=lambda bound: bound[0] in "<≤")
    if lower_sign in "<≤" or upper_sign in ">≥":
        return match[0]
    return f"{low}{'<' if lower_sign == '>' else '≤'}{name}{upper_sign}{high}"


WORDS = RuleGroup(
    "Replace words and letters by the symbols that they stand for; symbols are those of ``SPELLINGS`` now.",
    (
        Rule(
            "Write the empty set as a symbol.",
            r"^\{\s*\}$|(?i:(?<![A-Za-z])(?:the )?empty set(?![A-Za-z]))",
            r"\\emptyset ",
            example=("the empty set", r"\emptyset "),
        ),
        Rule(
            'Write two bounds that are joined by "and" as one interval; the next rules read "and" like "or".',
            r"^([A-Za-z])\s*([<>≤≥])([^<>≤≥=,]+)(?:\\text\{\s*and\s*\}|(?<![A-Za-z])and(?![A-Za-z]))"
            r"\s*\1\s*([<>≤≥])([^<>≤≥=,]+)$",
            _bounded,
            example=("x>1and x<2", "1<x<2"),
        ),
        Rule(
            "Write the letter U between intervals as a union.",
            r"(?<=[)\]])\s*U\s*(?=[(\[])",
            "∪",
            example=("(1,2) U (3,4)", "(1,2)∪(3,4)"),
        ),
        Rule(
            'Write "and" and "or" between answers as commas.',
            r"(?:,|(?<!\s))\s*+(?:\\text\{[\s,]*(?:and|or)\s*\}|(?<![\\A-Za-z])(?:and|or)(?![A-Za-z]))",
            ", ",
            example=(r"-2 \text{ or } -12", "-2,  -12"),
        ),
        Rule(
            "Write percent as a sign.",
            r"\\text\{\s*(?:percent|pct)\s*\}|(?<![\\A-Za-z])(?:percent|pct)(?![A-Za-z])",
            "%",
            example=("50 percent", "50 %"),
        ),
        Rule(
            "Join adjacent texts.",
            r"(\\text\{[^{}]*)\}\s*\\text\{",
            r"\1 ",
            example=(r"\text{red} \text{hats}", r"\text{red hats}"),
        ),
        Rule(
            "Write infinity as a symbol.",
            r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])",
            r"\\infty ",
            example=("-infinity", r"-\infty "),
        ),
        Rule(
            "Write the real numbers as an interval.",
            r"\\text\{\s*all real numbers\s*\}|(?i:all real numbers)|\\mathbb\s*\{?R\}?",
            r"(-\\infty ,\\infty )",
            example=(r"\mathbb{R}", r"(-\infty ,\infty )"),
        ),
        Rule(
            "Write a set that is given by a condition as the condition.",
            r"^(?:⦃|\{)\s*[A-Za-z]\s*(?:∈\s*\(-\\infty ,\\infty \)\s*)?[|:]([^⦃⦄|]*)(?:⦄|\})$",
            r"\1",
            example=("⦃x | x>3⦄", " x>3"),
        ),
        Rule(
            "Write constants and roots as commands.",
            rf"(?<![\\A-Za-z])({'|'.join((*CONSTANTS, 'sqrt'))})(?![A-Za-z])",
            r"\\\1 ",
            example=("pi/4", r"\pi /4"),
        ),
        Rule(
            'Write functions as commands, unless nothing follows: "5 sec" is a time.',
            rf"(?<![\\A-Za-z])({'|'.join(FUNCTIONS)})(?![A-Za-z]|[.\s}}]*$)",
            r"\\\1 ",
            example=("cos(x)", r"\cos (x)"),
        ),
    ),
)
