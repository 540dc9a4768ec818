"""One way of writing an answer, of the many that LaTeX and plain text have: its signs, spaces, braces and numbers."""

# ruff: noqa: RUF001  (signs that are alike are what this file is about)

import re
import unicodedata
from collections.abc import Callable, Iterable

LONGEST = 2000
"""Characters; a longer answer is none."""

_GREEK = ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "pi", "phi", "omega")
_SYMBOLS = {
    **dict.fromkeys(("\\dfrac", "\\tfrac", "\\cfrac"), "\\frac"),
    **dict.fromkeys(("\\dbinom", "\\tbinom"), "\\binom"),
    **dict.fromkeys(("\\leq", "\\leqslant", "\\le", "<="), "≤"),
    **dict.fromkeys(("\\geq", "\\geqslant", "\\ge", ">="), "≥"),
    **dict.fromkeys(("\\neq", "\\ne", "!="), "≠"),
    **dict.fromkeys(("\\lt",), "<"),
    **dict.fromkeys(("\\gt",), ">"),
    **dict.fromkeys(("\\approx", "\\simeq"), "≈"),
    **dict.fromkeys(("\\in", "∊"), "∈"),
    **dict.fromkeys(("\\cup",), "∪"),
    **dict.fromkeys(("\\ldots", "\\cdots", "…", "..."), "\\dots "),
    "∩": "\\cap ",
    "∠": "\\angle ",
    "⁄": "/",
    **dict.fromkeys(("\\pm", "+/-"), "±"),
    **dict.fromkeys(("\\mp",), "∓"),
    **dict.fromkeys(("\\{", "\\lbrace"), "⦃"),
    **dict.fromkeys(("\\}", "\\rbrace"), "⦄"),
    **dict.fromkeys(("\\langle", "⟨", "\\lparen"), "("),
    **dict.fromkeys(("\\rangle", "⟩", "\\rparen"), ")"),
    **dict.fromkeys(("\\lbrack",), "["),
    **dict.fromkeys(("\\rbrack",), "]"),
    **dict.fromkeys(("\\lvert", "\\rvert", "\\vert", "\\mid"), "|"),
    **dict.fromkeys(("−", "–"), "-"),
    **dict.fromkeys(("\\degree", "°"), "^\\circ "),
    **dict.fromkeys(("×", "·", "⋅", "\\cdot"), "\\times "),
    **dict.fromkeys(("÷", "\\div"), "/"),
    **dict.fromkeys(("\\varnothing", "∅", "\\{\\}"), "\\emptyset "),
    "∞": "\\infty ",
    **{letter: f"\\{name} " for letter, name in zip("αβγδθλμπφω", _GREEK, strict=True)},
    "√": "\\sqrt ",
    "ℝ": "\\mathbb{R}",
    "**": "^",
    "\\%": "%",
    "~": " ",
    "\\cr": "\\\\",
    "\\\\": "\\\\",  # the end of a matrix's row is not the beginning of a command
}
_SCALES = {
    name: f"\\times 10^{{{power}}}"
    for name, power in (("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12))
}
_MONEY = {"\\$": "dollars", "USD": "dollars", "€": "euros", "£": "pounds", "¥": "yen"}
_ONES, _TENS = (
    words.split()
    for words in (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen",
        "twenty thirty forty fifty sixty seventy eighty ninety",
    )
)
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
_NUMERALS = {
    **{one: f"{n}" for n, one in enumerate(_ONES)},
    **{ten: f"{n}0" for n, ten in enumerate(_TENS, 2)},
    **{f"{ten} {one}": f"{n}{m}" for n, ten in enumerate(_TENS, 2) for m, one in enumerate(_ONES[1:10], 1)},
    **{
        f"{one} {part}{'s' * (n > 1)}": f"\\frac{{{n}}}{{{parts}}}"
        for n, one in enumerate(_ONES[1:10], 1)
        for part, parts in _PARTS.items()
    },
}
_FUNCTIONS = ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "exp", "log", "ln")
_CONSTANTS = ("pi", "infty", "theta", "alpha", "beta")
NAMES = (*_FUNCTIONS, *_CONSTANTS, "sqrt")
"""What plain text writes in letters, and LaTeX as a command."""
_ORDINAL = "(?:st|nd|rd|th)"


def _any_of(table: Iterable[str]) -> str:
    ordered = sorted(table, key=len, reverse=True)
    return "|".join(re.escape(way) + ("(?![A-Za-z])" if re.match(r"\\[A-Za-z]", way) else "") for way in ordered)


def _compatible(template: str) -> Callable[[re.Match[str]], str]:
    """A replacement that puts what Unicode has a sign stand for, in plain characters, into a template."""
    return lambda match: template.format(*unicodedata.normalize("NFKC", match[0]).split("⁄"))


def _mixed(match: re.Match[str]) -> str:
    whole, numerator, denominator = (int(group) for group in match.groups())
    return f"\\frac{{{whole * denominator + numerator}}}{{{denominator}}}"


def _between(match: re.Match[str]) -> str:
    """``1 < x < 2`` for ``x > 1 and x < 2``: the words for both and for either are taken for commas after this."""
    name, *bounds = match.groups()
    (under, low), (over, high) = sorted((bounds[:2], bounds[2:]), key=lambda bound: bound[0] in "<≤")
    if under in "<≤" or over in ">≥":
        return match[0]
    return f"{low}{'<' if under == '>' else '≤'}{name}{over}{high}"


def _braced(match: re.Match[str]) -> str:
    """Braces for the parentheses around a root's or power's argument, which may have others in it."""
    text = match[0]
    characters, opened = list(text), []
    for at, character in enumerate(text):
        if character == "(":
            opened.append(at)
        elif character == ")" and opened:
            start = opened.pop()
            if text[max(0, start - 9) : start].rstrip().endswith(("\\sqrt", "^")):
                characters[start], characters[at] = "{", "}"
    return "".join(characters)


_PATTERNS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^\s*(?:\\(?:displaystyle|textstyle)(?![A-Za-z])\s*)+", ""),  # so that what follows begins the text
    # signs for several: 1, ½, ³, ₂
    ("[！-～]+", _compatible("{}")),
    ("[¼-¾⅐-⅞]", _compatible(r"\frac{{{}}}{{{}}}")),
    ("[⁰¹²³⁴-⁹⁺⁻ⁿ]+", _compatible("^{{{}}}")),
    ("[₀-₉]+", _compatible("_{{{}}}")),
    # numbers and money
    (r"(?<=\d)(?:\{,\}|,\\!|\\!,)\s*(?=\d)", ""),
    (r"(?<=\d)\\[, ](?=\d{3}(?!\d))", ""),
    (r"\\text\{\s*(thousand|million|billion|trillion)(?![a-z])", lambda match: _SCALES[match[1]] + r"\text{"),
    (r"(?<=\d)\s*(thousand|million|billion|trillion)(?![a-z])", lambda match: _SCALES[match[1]]),
    (
        rf"({_any_of(_MONEY)})\s*((?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*\\times 10\^\{{\d+\}})?)(?!\d|\s*\\[dt]?frac)",
        lambda match: rf"{match[2]}\text{{ {_MONEY[match[1]]}}}",
    ),
    (r"\\text\{\s*¢\s*\}|¢", r"\\text{ cents}"),
    (r"(?<=\d)\s*x\s*(?=10\s*\^)", r"\\times "),
    (r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}", r"\\binom{\1}{\2}"),
    (r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})*,0\d\d(?:,\d{3})*(?!\d)", lambda match: match[0].replace(",", "")),
    # how it looks
    (r"\\\\\s*\[[\d.]+\s*[a-z]{2}\]", r"\\\\"),
    (r"\\\$|\$|(?<!\\)\\[()\[\]]", ""),
    (r"\\(?:left|right)\s*\.", ""),
    (r"\\phantom\s*(?:\{[^{}]*\}|\S)", ""),
    (r"(\\\\)|\\!|\\(?:left|right|middle|[bB]ig{1,2}[lrm]?)(?![A-Za-z])", r"\1"),
    (r"(\\\\)|\\(?:[,;:> ]|(?:quad|qquad|enspace|bf|it|rm|displaystyle|textstyle)(?![A-Za-z]))", r"\1 "),
    (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
    (
        r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mbox|hbox|math(?:rm|bf|it|sf|tt)|boldsymbol|bm|emph|underline"
        r"|operatorname\*?)\s*\{",
        r"\\text{",
    ),
    (
        rf"(?<=\d)(?:(?:(?<=1)st|(?<=2)nd|(?<=3)rd|th)(?![A-Za-z])|\s*\^\s*\{{\s*(?:\\text\{{\s*{_ORDINAL}\s*\}}|{_ORDINAL})\s*\}}"
        rf"|\s*\^?\s*\\text\{{\s*{_ORDINAL}\s*\}})",
        "",
    ),
    (
        rf"_\s*(\{{\s*)?\\text\{{\s*({'|'.join(_ONES)})\s*\}}(?(1)\s*\}})",
        lambda match: f"_{{{_NUMERALS[match[2]]}}}",
    ),
    (r"\\text\{([\s\d.,]*|\s*\(?[A-Za-z]\)?\s*)\}", r" \1"),
    (r"(?:√|(?<![\\A-Za-z])sqrt)\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}"),
    (_any_of(_SYMBOLS), lambda match: _SYMBOLS[match[0]]),
    (r"\.(?=\d+\s*\\dots)(\d*?)(\d{1,9}?)\2{2,}\s*\\dots", r".\1\\overline{\2}"),
    # words
    (r"^\{\s*\}$|(?i:(?<![A-Za-z])(?:the )?empty set(?![A-Za-z]))", r"\\emptyset "),
    (
        r"^([A-Za-z])\s*([<>≤≥])([^<>≤≥=,]+)(?:\\text\{\s*and\s*\}|(?<![A-Za-z])and(?![A-Za-z]))"
        r"\s*\1\s*([<>≤≥])([^<>≤≥=,]+)$",
        _between,
    ),
    (r"(?<=[)\]])\s*U\s*(?=[(\[])", "∪"),
    (r",?\s*(?:\\text\{[\s,]*(?:and|or)\s*\}|(?<![\\A-Za-z])(?:and|or)(?![A-Za-z]))", ", "),
    (r"\\text\{\s*(?:percent|pct)\s*\}|(?<![\\A-Za-z])(?:percent|pct)(?![A-Za-z])", "%"),
    (r"(\\text\{[^{}]*)\}\s*\\text\{", r"\1 "),
    (r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
    (
        r"\\text\{\s*all real numbers\s*\}|(?i:all real numbers)|\\mathbb\s*\{?R\}?",
        r"(-\\infty ,\\infty )",
    ),
    (r"^(?:⦃|\{)\s*[A-Za-z]\s*(?:∈\s*\(-\\infty ,\\infty \)\s*)?[|:]([^⦃⦄|]*)(?:⦄|\})$", r"\1"),
    (rf"(?<![\\A-Za-z])({'|'.join((*_CONSTANTS, 'sqrt'))})(?![A-Za-z])", r"\\\1 "),
    (rf"(?<![\\A-Za-z])({'|'.join(_FUNCTIONS)})(?![A-Za-z]|[.\s}}]*$)", r"\\\1 "),  # "5 sec" is a time
    # arguments and exponents without braces
    (r"(?s).+", _braced),
    (r"\\sqrt\s*(\[[^\]]*\])?\s*(\d|[A-Za-z])", r"\\sqrt\1{\2}"),
    (r"\\(frac|binom)\s*(\d)\s*(\d)", r"\\\1{\2}{\3}"),
    (r"\\frac\s*([\dA-Za-z])\s*\{", r"\\frac{\1}{"),
    (r"\\frac\s*\\pi\s*(?=[\d{])", r"\\frac{\\pi}"),
    (r"\\frac\s*(\{[^{}]*\})\s*([\dA-Za-z])", r"\\frac\1{\2}"),
    (r"\^\s*([-+]?\d{2,}|[-+]\d)", r"^{\1}"),
    (r"(\\sqrt\s*(?:\[[^\]]*\])?)\s*(\\frac\s*\{[^{}]*\}\s*\{[^{}]*\})", r"\1{\2}"),
    (r"_\s*(\d)(?!\d)", r"_{\1}"),
    (r"(?<![\w.^/)}])(\d+)/(\d+)(?=\s*[A-Za-z\\(])", r"\\frac{\1}{\2}"),  # 1/2x is half of x
    # numbers once more
    (r"(?<![\w.}])(\d{1,300})\s*\\frac\s*\{(\d{1,300})\}\s*\{(\d{1,300})\}", _mixed),
    (r"(?<![\w./])(\d{1,300})\s+(\d{1,300})/(\d{1,300})(?![\d/])", _mixed),
    (r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?!\w)", r"\1\\times 10^{\2}"),
    ("。", ". "),
    (r"\s+", " "),
]
_REWRITINGS = [(re.compile(pattern), to) for pattern, to in _PATTERNS]
_BALANCED = re.compile(r"(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*+\})*+")
_BRACKETS = re.compile(r"[(\[⦃]|\\begin")

THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?![\d,])")
"""A number with separators, which may also be several numbers."""

TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")


TEXT = re.compile(r"\\text\{[A-Za-z]{2,}\}")
"""One word that is marked as such, and so no product of variables."""


def normalize(answer: str) -> str:
    """An answer in the one of its ways of writing that is compared here; whitespace is single."""
    text = answer.strip(" \t\r\n*`")
    if re.sub(r"\\\$", "", text).count("$") % 2:  # not around a formula: dollars
        text = re.sub(r"(?<!\\)\$(?=\s*[\d.])", r"\\$", text)
    for pattern, to in _REWRITINGS:
        text = pattern.sub(to, text)
    while (shorter := _unwrapped(text.lstrip(" ,;:").rstrip(" .,;:\\"))) != text:
        text = shorter
    if (words := plain(text).casefold().replace("-", " ")) in _NUMERALS:
        return _NUMERALS[words]
    if not _BRACKETS.search(text):  # in brackets, a comma comes between coordinates
        text = THOUSANDS.sub(lambda match: re.sub("[, ]", "", match[0]), text)
    return text


def _unwrapped(text: str) -> str:
    r"""Without the braces, or the ``\text{}``, around all of it."""
    for start in ("{", "\\text{"):
        if start == "\\text{" and TEXT.fullmatch(text):
            return text
        if text.startswith(start) and text.endswith("}") and _BALANCED.fullmatch(text, len(start), len(text) - 1):
            inside = text[len(start) : -1].strip()
            return f"⦃{inside}⦄" if start == "{" and "," in inside else inside
    return text


def plain(text: str) -> str:
    r"""Without ``\text{}`` around parts of it."""
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", text)


def is_text(text: str) -> bool:
    """Whether it is words rather than a product of variables: four letters, three with a capital, or a known word."""
    if TEXT.fullmatch(text):
        return True
    spoken = plain(text)
    if re.search(r"[\\^_=+*/<>|{}]", spoken):
        return False
    words = re.findall(r"(?<![A-Za-z0-9])[A-Za-z]+(?![A-Za-z0-9])", spoken)
    return any(len(w) > 3 or re.fullmatch("[A-Z][A-Za-z]{2}|(?i:yes|no|odd)", w) for w in words)
