"""Rules for how an answer is set: characters, fonts, spaces, and the many names of one symbol."""

# ruff: noqa: RUF001  (similar characters are what these rules are about)

import re
import unicodedata

from .rules import Replacement, Rule, RuleGroup, any_of

GREEK = ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "pi", "phi", "omega")
SYMBOLS = {
    **dict.fromkeys(("\\dfrac", "\\tfrac", "\\cfrac"), "\\frac"),
    **dict.fromkeys(("\\dbinom", "\\tbinom"), "\\binom"),
    **dict.fromkeys(("\\leq", "\\leqslant", "\\le", "<="), "≤"),
    **dict.fromkeys(("\\geq", "\\geqslant", "\\ge", ">="), "≥"),
    **dict.fromkeys(("\\neq", "\\ne", "!="), "≠"),
    "\\lt": "<",
    "\\gt": ">",
    **dict.fromkeys(("\\approx", "\\simeq"), "≈"),
    **dict.fromkeys(("\\in", "∊"), "∈"),
    "\\cup": "∪",
    **dict.fromkeys(("\\ldots", "\\cdots", "…", "..."), "\\dots "),
    "∩": "\\cap ",
    "∠": "\\angle ",
    "⁄": "/",
    **dict.fromkeys(("\\pm", "+/-"), "±"),
    "\\mp": "∓",
    **dict.fromkeys(("\\{", "\\lbrace"), "⦃"),
    **dict.fromkeys(("\\}", "\\rbrace"), "⦄"),
    **dict.fromkeys(("\\langle", "⟨", "\\lparen"), "("),
    **dict.fromkeys(("\\rangle", "⟩", "\\rparen"), ")"),
    "\\lbrack": "[",
    "\\rbrack": "]",
    **dict.fromkeys(("\\lvert", "\\rvert", "\\vert", "\\mid"), "|"),
    **dict.fromkeys(("−", "–"), "-"),
    **dict.fromkeys(("\\degree", "°"), "^\\circ "),
    **dict.fromkeys(("×", "·", "⋅", "\\cdot"), "\\times "),
    **dict.fromkeys(("÷", "\\div"), "/"),
    **dict.fromkeys(("\\varnothing", "∅", "\\{\\}"), "\\emptyset "),
    "∞": "\\infty ",
    **{letter: f"\\{name} " for letter, name in zip("αβγδθλμπφω", GREEK, strict=True)},
    "√": "\\sqrt ",
    "ℝ": "\\mathbb{R}",
    "**": "^",
    "\\%": "%",
    "~": " ",
    "\\cr": "\\\\",
    "\\\\": "\\\\",  # matched so that the end of a matrix's row is not read as the start of a command
}
"""Spelling -> the one that later rules expect. Braces that are printed become ``⦃⦄``; those that group stay ``{}``."""

_ORDINAL = "(?:st|nd|rd|th)"


def _compatible(template: str) -> Replacement:
    """Return a replacement that inserts the plain characters a Unicode sign stands for into a template."""
    return lambda match: template.format(*unicodedata.normalize("NFKC", match[0]).split("⁄"))


CHARACTERS = RuleGroup(
    "Replace Unicode signs that stand for several plain characters.",
    (
        Rule(
            "Drop a style command at the start, so that the following rules see the start of the answer.",
            r"^\s*(?:\\(?:displaystyle|textstyle)(?![A-Za-z])\s*)+",
            "",
            example=(r"\displaystyle \{x \mid x>3\}", r"\{x \mid x>3\}"),
        ),
        Rule("Write full-width characters in ASCII.", "[！-～]+", _compatible("{}"), example=("（１，２）", "(1,2)")),
        Rule(
            "Write fractions that are one character with a command.",
            "[¼-¾⅐-⅞]",
            _compatible(r"\frac{{{}}}{{{}}}"),
            example=("2⅓", r"2\frac{1}{3}"),
        ),
        Rule("Write superscripts as powers.", "[⁰¹²³⁴-⁹⁺⁻ⁿ]+", _compatible("^{{{}}}"), example=("10⁻³", "10^{−3}")),
        Rule("Write subscripts with braces.", "[₀-₉]+", _compatible("_{{{}}}"), example=("log₁₀5", "log_{10}5")),
    ),
)

TYPESETTING = RuleGroup(
    "Remove what changes how an answer looks, but not what it says.",
    (
        Rule(
            "Drop the spacing after a matrix's row.",
            r"\\\\\s*\[[\d.]+\s*[a-z]{2}\]",
            r"\\\\",
            example=(r"2 \\[1ex] -4", r"2 \\ -4"),
        ),
        Rule("Drop the signs around formulas.", r"\\\$|\$|(?<!\\)\\[()\[\]]", "", example=(r"\(5\)", "5")),
        Rule("Drop invisible brackets.", r"\\(?:left|right)\s*\.", "", example=(r"\left. x \right|", r" x \right|")),
        Rule("Drop invisible text.", r"\\phantom\s*(?:\{[^{}]*\}|\S)", "", example=(r"\phantom -1", "1")),
        Rule(
            "Drop sizes of brackets and negative spaces.",
            r"(\\\\)|\\!|\\(?:left|right|middle|[bB]ig{1,2}[lrm]?)(?![A-Za-z])",
            r"\1",
            example=(r"\left(1\!, 2\right)", "(1, 2)"),
        ),
        Rule(
            "Write spaces and old font commands as a plain space.",
            r"(\\\\)|\\(?:[,;:> ]|(?:quad|qquad|enspace|bf|it|rm|displaystyle|textstyle)(?![A-Za-z]))",
            r"\1 ",
            example=(r"{\bf 5}\quad", "{  5} "),
        ),
        Rule("Drop colours.", r"\\(?:text)?color\s*\{[^{}]*\}", "", example=(r"\textcolor{blue}{5}", "{5}")),
        Rule(
            "Write all fonts as text; a later rule unwraps what is no word.",
            r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mbox|hbox|math(?:rm|bf|it|sf|tt)|boldsymbol|bm|emph|underline"
            r"|operatorname\*?)\s*\{",
            r"\\text{",
            example=(r"864 \mbox{ inches}^2", r"864 \text{ inches}^2"),
        ),
        Rule(
            "Drop the letters of ordinals.",
            rf"(?<=\d)(?:(?:(?<=1)st|(?<=2)nd|(?<=3)rd|th)(?![A-Za-z])"
            rf"|\s*\^\s*\{{\s*(?:\\text\{{\s*{_ORDINAL}\s*\}}|{_ORDINAL})\s*\}}"
            rf"|\s*+\^?\s*+\\text\{{\s*{_ORDINAL}\s*\}})",
            "",
            example=(r"21^{\text{st}}", "21"),
        ),
        Rule(
            "Unwrap numbers and single letters that are set as text.",
            r"\\text\{([\s\d.,]*|\s*\(?[A-Za-z]\)?\s*)\}",
            r" \1",
            example=(r"\text{(C)}", " (C)"),
        ),
    ),
)

SPELLINGS = RuleGroup(
    "Write each symbol in one way.",
    (
        Rule(
            "Put the digits after a root sign under it; without braces, LaTeX takes only the first.",
            r"(?:√|(?<![\\A-Za-z])sqrt)\s*(\d+(?:\.\d+)?)",
            r"\\sqrt{\1}",
            example=("√12", r"\sqrt{12}"),
        ),
        Rule(
            "Write each symbol as in ``SYMBOLS``.",
            any_of(SYMBOLS),
            lambda match: SYMBOLS[match[0]],
            example=(r"1 \leq \dfrac{x}{2}", r"1 ≤ \frac{x}{2}"),
        ),
        Rule(
            "Write digits that are repeated three times before dots as a repeating decimal.",
            r"\.(?=\d+\s*\\dots)(\d*?)(\d{1,9}?)\2{2,}\s*\\dots",
            r".\1\\overline{\2}",
            example=(r"0.1666\dots", r"0.1\overline{6}"),
        ),
    ),
)


def _braced(match: re.Match[str]) -> str:
    """Return the text with braces for the parentheses around a root's or power's argument, which may nest others."""
    text = match[0]
    characters, opened = list(text), []
    for position, character in enumerate(text):
        if character == "(":
            opened.append(position)
        elif character == ")" and opened:
            start = opened.pop()
            if text[max(0, start - 9) : start].rstrip().endswith(("\\sqrt", "^")):
                characters[start], characters[position] = "{", "}"
    return "".join(characters)


ARGUMENTS = RuleGroup(
    "Give the arguments of roots, fractions and powers their braces.",
    (
        Rule(
            "Write parentheses around an argument as braces.",
            r"(?s).+",
            _braced,
            example=(r"\sqrt((x+1)^2+1)", r"\sqrt{(x+1)^2+1}"),
        ),
        Rule(
            "Brace the one character after a root.",
            r"\\sqrt\s*(\[[^\]]*\])?\s*(\d|[A-Za-z])",
            r"\\sqrt\1{\2}",
            example=(r"\sqrt[3]2", r"\sqrt[3]{2}"),
        ),
        Rule(
            "Brace two digits after a fraction or binomial.",
            r"\\(frac|binom)\s*(\d)\s*(\d)",
            r"\\\1{\2}{\3}",
            example=(r"\frac 59", r"\frac{5}{9}"),
        ),
        Rule(
            "Brace a numerator of one character.",
            r"\\frac\s*([\dA-Za-z])\s*\{",
            r"\\frac{\1}{",
            example=(r"\frac9{19}", r"\frac{9}{19}"),
        ),
        Rule(
            "Brace a numerator of pi.",
            r"\\frac\s*\\pi\s*(?=[\d{])",
            r"\\frac{\\pi}",
            example=(r"\frac\pi 2", r"\frac{\pi}2"),
        ),
        Rule(
            "Brace a denominator of one character.",
            r"\\frac\s*(\{[^{}]*\})\s*([\dA-Za-z])",
            r"\\frac\1{\2}",
            example=(r"\frac{\pi}2", r"\frac{\pi}{2}"),
        ),
        Rule(
            "Brace an exponent of several digits or with a sign.",
            r"\^\s*([-+]?\d{2,}|[-+]\d)",
            r"^{\1}",
            example=("x^10", "x^{10}"),
        ),
        Rule(
            "Brace a fraction under a root.",
            r"(\\sqrt\s*(?:\[[^\]]*\])?)\s*(\\frac\s*\{[^{}]*\}\s*\{[^{}]*\})",
            r"\1{\2}",
            example=(r"\sqrt\frac{1}{2}", r"\sqrt{\frac{1}{2}}"),
        ),
        Rule("Brace a subscript of one digit.", r"_\s*(\d)(?!\d)", r"_{\1}", example=("52_8", "52_{8}")),
        Rule(
            "Write a coefficient's slash as a fraction: 1/2x is half of x.",
            r"(?<![\w.^/)}])(\d+)/(\d+)(?=\s*[A-Za-z\\(])",
            r"\\frac{\1}{\2}",
            example=("1/2x", r"\frac{1}{2}x"),
        ),
    ),
)
