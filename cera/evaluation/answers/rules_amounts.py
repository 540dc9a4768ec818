"""Rules for numbers: separators of thousands, words for scales, money, mixed numbers, scientific notation."""

import re

from .rules import Rule, RuleGroup, any_of

_SCALES = {
    "thousand": "\\times 10^{3}",
    "million": "\\times 10^{6}",
    "billion": "\\times 10^{9}",
    "trillion": "\\times 10^{12}",
}
_CURRENCIES = {"\\$": "dollars", "USD": "dollars", "€": "euros", "£": "pounds", "¥": "yen"}


def _mixed(match: re.Match[str]) -> str:
    whole, numerator, denominator = (int(group) for group in match.groups())
    return f"\\frac{{{whole * denominator + numerator}}}{{{denominator}}}"


AMOUNTS = RuleGroup(
    "Write numbers without separators and money as a value with a unit, while spaces and dollar signs are still there.",
    (
        Rule(
            "Write a negative number with its sign.",
            r"(?<![A-Za-z])(?i:negative)\s(?=\d)",
            "-",
            example=("negative 42", "-42"),
        ),
        Rule(
            "Drop a comma between digits that is set as a separator.",
            r"(?<=\d)(?:\{,\}|,\\!|\\!,)\s*(?=\d)",
            "",
            example=(r"10,\!080", "10080"),
        ),
        Rule(
            "Drop a thin space before three digits.",
            r"(?<=\d)\\[, ](?=\d{3}(?!\d))",
            "",
            example=(r"12\,345", "12345"),
        ),
        Rule(
            "Write a scale that is set as text as a power of ten.",
            r"\\text\{\s*(thousand|million|billion|trillion)(?![a-z])",
            lambda match: _SCALES[match[1]] + r"\text{",
            example=(r"2.5 \text{ million}", r"2.5 \times 10^{6}\text{}"),
        ),
        Rule(
            "Write a scale after a number as a power of ten.",
            r"(?<=\d)\s*(thousand|million|billion|trillion)(?![a-z])",
            lambda match: _SCALES[match[1]],
            example=("5 million", r"5\times 10^{6}"),
        ),
        Rule(
            "Write a currency before a number as a unit after it.",
            rf"({any_of(_CURRENCIES)})\s*((?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*\\times 10\^\{{\d+\}})?)"
            r"(?!\d|\s*\\[dt]?frac)",
            lambda match: rf"{match[2]}\text{{ {_CURRENCIES[match[1]]}}}",
            example=(r"\$18.90", r"18.90\text{ dollars}"),
        ),
        Rule(
            "Write the sign of cents as a unit.",
            r"\\text\{\s*¢\s*\}|¢",
            r"\\text{ cents}",
            example=("50¢", r"50\text{ cents}"),
        ),
        Rule(
            "Write the letter x before a power of ten as a product.",
            r"(?<=\d)\s*x\s*(?=10\s*\^)",
            r"\\times ",
            example=("1.5 x 10^3", r"1.5\times 10^3"),
        ),
        Rule(
            "Write TeX's binomials as LaTeX's.",
            r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}",
            r"\\binom{\1}{\2}",
            example=(r"{5 \choose 2}", r"\binom{5}{2}"),
        ),
        Rule(
            "Drop commas of a number in which a group starts with 0, which no list has.",
            r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})*,0\d\d(?:,\d{3})*(?!\d)",
            lambda match: match[0].replace(",", ""),
            example=("(10,000, 2)", "(10000, 2)"),
        ),
    ),
)

VALUES = RuleGroup(
    "Write numbers that are left in one form; fractions have their braces now.",
    (
        Rule(
            "Write a mixed number as one fraction.",
            r"(?<![\w.}])(\d{1,300})\s*\\frac\s*\{(\d{1,300})\}\s*\{(\d{1,300})\}",
            _mixed,
            example=(r"1\frac{4}{5}", r"\frac{9}{5}"),
        ),
        Rule(
            "Write a mixed number with a slash as one fraction.",
            r"(?<![\w./])(\d{1,300})\s+(\d{1,300})/(\d{1,300})(?![\d/])",
            _mixed,
            example=("1 1/2", r"\frac{3}{2}"),
        ),
        Rule(
            "Write the notation of programs as a power of ten.",
            r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?!\w)",
            r"\1\\times 10^{\2}",
            example=("1.2e3", r"1.2\times 10^{3}"),
        ),
        Rule("Write the ideographic full stop as a full stop.", "。", ". ", example=("5。", "5. ")),
        Rule("Write any whitespace as one space.", r"\s+", " ", example=("1,\n  2", "1, 2")),
    ),
)
