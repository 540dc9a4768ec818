r"""Finds the final answer of a worked solution.

>>> extract(r"First \boxed{4}, then \boxed{\frac{1}{2}}.")
Extraction(answer='\\frac{1}{2}', extracted_by='boxed')
>>> extract("She sells 9 eggs. The answer is $18.")
Extraction(answer='$18', extracted_by='phrase')
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .notation import LONGEST
from .rules_words import NAMES
from .units import is_quantity
from .written_numbers import NUMBER, last_number

ExtractionRule = Literal["boxed", "hashes", "phrase", "last number", "whole text"]
"""What identifies an answer."""


@dataclass(frozen=True)
class Extraction:
    """A solution's final answer as it is written there, and what identified it."""

    answer: str
    extracted_by: ExtractionRule


def extract(text: str) -> Extraction | None:
    """Return the final answer of a solution; takes linear time, whatever the text.

    These are tried in order, so that the solutions of MATH and GSM8K and those of the usual prompts are read alike:

    1. the last ``\\boxed{}`` or ``\\fbox{}`` that is closed and not empty, or ``\\boxed 5``;
    2. the last ``#### N`` (GSM8K): a number with at most a unit, unless it ends the text;
    3. the last "The answer is X", "The correct option is X", or "Answer: X", up to the end of the sentence or to an
       addition such as ", because"; this is also tried within a box and after hashes;
    4. the last number of the text, which is a guess, as ``extracted_by`` states.

    Where a gold answer is known, ``judge`` says which answer was compared with it.
    """
    if mark := marked(text):
        return mark
    number = last_number(text)
    return Extraction(number, "last number") if number else None


def candidates(text: str, numeric: bool) -> Iterator[Extraction]:
    """Yield what may be a prediction's answer, the first choice first.

    The first choice is the marked answer, or the whole text if nothing is marked. The second is the last number of
    prose: "The answer is that she has 5 apples left" stands for 5.

    Args:
        text: The prediction.
        numeric: Whether the gold answer is a number; the last number is a guess at numbers only.
    """
    mark = marked(text)
    if mark:
        yield mark
    elif len(text) <= LONGEST and unmarked(text).strip():
        yield Extraction(text.strip(), "whole text")
    if numeric and (mark is None or mark.extracted_by == "phrase"):
        statement = mark.answer if mark else text
        number = last_number(statement)
        if number and is_prose(statement):
            yield Extraction(number, "last number")


def marked(text: str) -> Extraction | None:
    """Return the answer that the text marks as such, if any."""
    if answer := _boxed(text):
        return Extraction(_after_phrase(answer) or answer, "boxed")
    if answer := _after_hashes(text):
        return Extraction(_after_phrase(answer) or answer, "hashes")
    if answer := _after_phrase(text):
        return Extraction(answer, "phrase")
    return None


def unmarked(text: str) -> str:
    """Return a text without marked answer as an answer; it is empty if a mark is there, but no answer after it."""
    return "" if re.search(r"\\boxed|\\fbox|####", text) or _PHRASE.search(text) else text


_NAMES = "|".join(("and", "or", *NAMES))
"""Words that are part of a formula rather than of a sentence."""

# --- Marks of an answer

_BEFORE_ANSWER = " \t\n\r\f\v\u00a0\u3000*\"'`"
_AFTER_ANSWER = _BEFORE_ANSWER + ".,;:。"

_BOX_OR_BRACE = re.compile(  # \boxed{ | \boxed 5 | \boxed\frac12 | { | } | an escaped character
    r"(?P<box>\\(?:boxed|fbox)(?![A-Za-z])\s*+)"
    r"(?:(?P<bare>\\[dt]?frac\s*(?:(?:\{[^{}]*\}|\w)\s*){2}|[^\s{}$\\]+)|(?P<brace>\{))?"
    r"|\\.|(?P<open>\{)|\}",
    re.DOTALL,
)
_HASHES = re.compile(r"####[^\S\n]*([^\n]*)")  # #### 18
_PHRASE = re.compile(  # The answer is | **Answer:** | The correct option is
    r"(?i)(?<![a-z])(?:answers?|(?:correct|right|best) (?:option|choice))[*_]*\s*"
    r"(?:(?:is|are)\b(?!\s+not\b)[*_]*(?:\s*:)?|[:=])[*_]*(?:\s*\})?"
)
_WINDOW = 2 * LONGEST
"""Number of characters after a phrase in which the end of the answer is searched."""

# --- Numbers

_NUMBER_AND_UNIT = re.compile(rf"(?:{NUMBER})(?:\s?[A-Za-z°]++){{0,3}}[.!]?")  # 5 miles per hour
_NUMBER_AFTER_WORDS = re.compile(  # I got 18. | so, \(18\)
    rf"(?:[A-Za-z']+[,:]? )+(?:\\\()?(?:{NUMBER})(?:\$|\\\))?[.!]?"
)

# --- Sentences

_FORMULA = (  # $$x$$ | $x$; if a sentence ends between two dollar signs, they are two prices
    r"\$\$.+?\$\$|\$(?:(?>\\begin.+?\\end)|\\.|[^$\n.!?\\]|\n(?!\s*\n|[A-Z])|[.!?](?!\s+[A-Z]))++\$"
)
_SENTENCE_END = r"\n|。|\.(?=\s+[^a-z\s]|\s*\Z|\*)|[!?](?=\s*\Z|\s*\n|\s+[A-Z])"  # the point of 3.5 or p.m. is none
_TOKEN = re.compile(rf"\\[A-Za-z]+|\\.|{_FORMULA}|[{{}}]|{_SENTENCE_END}", re.DOTALL)
_ADDITION = re.compile(  # , because 3 < 4 | , not 6 | , 3 of which are red | (9*2=18) | (she had 3)
    r",? (?:because|since|therefore|thus|hence)\b.*|, (?:so|as|which|where|when|and so|not|but|\d+ of)\b.*"
    rf"|(?<=[\d$%}}a-z]) \((?=.*=|.*(?<![\\A-Za-z])(?!(?:{_NAMES})\b)[A-Za-z]{{3}}).*\)$"
)
_WORD = re.compile(rf"(?!(?:{_NAMES})\b)[A-Za-z]{{2,}}(?:'[a-z]+)?[.,:;!?]*")  # apples | it's | so,


def _boxed(text: str) -> str | None:
    """Return the content of the last box; of a box within another, that of the inner one."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    answer, answer_start = None, -1
    opened: list[int | None] = []  # for each open brace, the start of the box's content if it opens one
    for match in _BOX_OR_BRACE.finditer(text):
        if len(opened) > LONGEST:  # no solution nests as many braces
            return None
        if match["open"]:
            opened.append(None)
        elif match["brace"]:
            opened.append(match.end())
        elif match["bare"]:
            answer, answer_start = match["bare"].strip().rstrip(".,;:"), match.start()
        elif match[0] == "}" and opened:
            start = opened.pop()
            if start is not None and start > answer_start and (content := text[start : match.start()].strip()):
                answer, answer_start = content, start
    return answer


def _after_hashes(text: str) -> str | None:
    """Return what follows the last ``####``, unless it is the heading of a section."""
    answer = None
    end = len(text.rstrip())
    for match in _HASHES.finditer(text):
        line = match[1].strip()
        if _NUMBER_AND_UNIT.fullmatch(line) or (line and match.end() >= end):
            answer = line
    return _trimmed(answer) if answer else None


def _after_phrase(text: str) -> str | None:
    """Return what follows the last "The answer is", unless it is a sentence with numbers in it."""
    phrases = [match.end() for match in _PHRASE.finditer(text)]
    for start in phrases[:-3:-1]:  # the last phrase may end the text, with nothing after it
        sentence = _first_sentence(text[start : start + _WINDOW].lstrip())
        answer = _trimmed(_ADDITION.sub("", " ".join(sentence.split())))
        if answer:
            is_sentence = len(_words(answer)) > 2 and is_prose(answer) and re.search(r"\d", answer)
            return None if is_sentence else answer
    return None


def _first_sentence(text: str) -> str:
    """Return the text up to the end of its first sentence or line, or of the brace around it, outside of formulas."""
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        depth += (token in ("{", "\\begin", "\\(", "\\[")) - (token in ("}", "\\end", "\\)", "\\]"))
        if depth < 0 or (token in ("\n", ".", "!", "?", "。") and depth == 0):
            return text[: match.start()]
    return text


def _trimmed(answer: str) -> str:
    """Return an answer without surrounding whitespace, full stop, emphasis, and signs of a formula."""
    while True:
        shorter = answer.lstrip(_BEFORE_ANSWER).rstrip(_AFTER_ANSWER)
        for start, end in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
            inside = shorter[len(start) : -len(end)]
            if shorter.startswith(start) and shorter.endswith(end) and inside and start not in inside:
                shorter = inside  # of each kind of sign, one pair is removed at most
        if shorter == answer:
            return answer
        answer = shorter


def _words(line: str) -> list[str]:
    return [word for word in re.sub(r"\\text\s*\{[^{}]*\}", " ", line).split() if _WORD.fullmatch(word)]


def is_prose(text: str) -> bool:
    """Return whether a text is prose about an answer rather than an answer.

    Prose has words other than the unit of a value: "I count 5 apples", but not "5 apples".
    """
    line = text.strip()
    if "\n" in line:
        return True
    words = _words(line)
    if len(words) < 2 and not any(len(word) > 3 for word in words):
        return bool(words) and _NUMBER_AFTER_WORDS.fullmatch(line) is not None
    return len(line) > LONGEST or not is_quantity(line)
