"""The final answer of a worked solution."""

# ruff: noqa: RUF001  (a minus sign is looked for)

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .notation import LONGEST
from .rules_words import NAMES
from .units import is_quantity

How = Literal["boxed", "hashes", "phrase", "last number", "whole text"]


@dataclass(frozen=True)
class Extraction:
    """A solution's final answer as it is written there, and what identified it."""

    answer: str
    how: How


def extract(text: str) -> Extraction | None:
    """Return the final answer of a solution; takes linear time, whatever the text.

    These are tried in order, so that the solutions of MATH and GSM8K and those of the usual prompts are read alike:

    1. the last ``\\boxed{}`` or ``\\fbox{}`` that is closed and not empty, or ``\\boxed 5``;
    2. the last ``#### N`` (GSM8K): a number with at most a unit, unless it ends the text;
    3. the last "The answer is X", "The correct option is X", or "Answer: X", up to the end of the sentence or to an
       addition such as ", because"; this is also tried within a box and after hashes;
    4. the last number of the text, which is a guess, as ``how`` states.

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
    if numeric and (mark is None or mark.how == "phrase"):
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


_BOX_OR_BRACE = re.compile(
    r"(?P<box>\\(?:boxed|fbox)(?![A-Za-z])\s*+)"
    r"(?:(?P<bare>\\[dt]?frac\s*(?:(?:\{[^{}]*\}|\w)\s*){2}|[^\s{}$\\]+)|(?P<brace>\{))?"
    r"|\\.|(?P<open>\{)|\}",
    re.DOTALL,
)


def _boxed(text: str) -> str | None:
    """What the last box holds. Of one in another it is the inner one."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    answer, at = None, -1
    opened: list[int | None] = []
    for match in _BOX_OR_BRACE.finditer(text):
        if len(opened) > LONGEST:  # no solution is as deep
            return None
        if match["open"]:
            opened.append(None)
        elif match["brace"]:
            opened.append(match.end())
        elif match["bare"]:
            answer, at = match["bare"].strip().rstrip(".,;:"), match.start()
        elif match[0] == "}" and opened:
            start = opened.pop()
            if start is not None and start > at and (inside := text[start : match.start()].strip()):
                answer, at = inside, start
    return answer


_NUMBER = re.compile(
    r"(?<!not )(?:(?<![\w)}\]])[-−])?\\?\$?-?"
    r"(?:\\[dt]?frac\{-?\d+\}\{\d+\}"
    r"|(?<![A-Za-z_^\d.])(?:\d{1,2}:\d\d(?!\d)|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?|\.\d+))"
    r"(?:\s?\\?%)?"
)
_HASHES = re.compile(r"####[^\S\n]*([^\n]*)")
_NUMBER_AND_UNIT = re.compile(rf"(?:{_NUMBER.pattern})(?:\s?[A-Za-z°]+){{0,3}}[.!]?")


def _after_hashes(text: str) -> str | None:
    answer = None
    for match in _HASHES.finditer(text):  # a heading of the same level is no answer
        line = match[1].strip()
        if _NUMBER_AND_UNIT.fullmatch(line) or (line and not text[match.end() :].strip()):
            answer = line
    return _trimmed(answer) if answer else None


_NAMES = "|".join(("and", "or", *NAMES))
_PHRASE = re.compile(
    r"(?i)(?<![a-z])(?:answers?|(?:correct|right|best) (?:option|choice))[*_]*\s*"
    r"(?:(?:is|are)\b(?!\s+not\b)[*_]*(?:\s*:)?|[:=])[*_]*(?:\s*\})?"
)
_TOKEN = re.compile(
    r"\\[A-Za-z]+|\\."
    # a formula, which has no end of a sentence in it: with one, the signs are two prices
    r"|\$\$.+?\$\$|\$(?:(?>\\begin.+?\\end)|\\.|[^$\n.!?\\]|\n(?!\s*\n|[A-Z])|[.!?](?!\s+[A-Z]))++\$"
    r"|[{}\n。]|\.(?=\s+[^a-z\s]|\s*\Z|\*)|[!?](?=\s*\Z|\s*\n|\s+[A-Z])",
    re.DOTALL,
)
_REASON = re.compile(
    r",? (?:because|since|therefore|thus|hence)\b.*|, (?:so|as|which|where|when|and so|not|but|\d+ of)\b.*"
    rf"|(?<=[\d$%}}a-z]) \((?=.*=|.*(?<![\\A-Za-z])(?!(?:{_NAMES})\b)[A-Za-z]{{3}}).*\)$"
)
_WINDOW = 2 * LONGEST


def _after_phrase(text: str) -> str | None:
    phrases = [match.end() for match in _PHRASE.finditer(text)]
    for start in phrases[:-3:-1]:  # the last one may stand at the end, with nothing after it
        sentence = _sentence(text[start : start + _WINDOW].lstrip())
        answer = _trimmed(_REASON.sub("", " ".join(sentence.split())))
        if answer:
            is_sentence = len(_words(answer)) > 2 and is_prose(answer) and re.search(r"\d", answer)
            return None if is_sentence else answer
    return None


def _sentence(text: str) -> str:
    """Up to the end of its first sentence, line, or brace that holds it; none of them ends in a formula."""
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        depth += (token in ("{", "\\begin", "\\(", "\\[")) - (token in ("}", "\\end", "\\)", "\\]"))
        if depth < 0 or (token in ("\n", ".", "!", "?", "。") and depth == 0):
            return text[: match.start()]
    return text


def _trimmed(answer: str) -> str:
    """Without what is around it: whitespace, the sentence's full stop, emphasis, and the signs of a formula."""
    shorter = answer.strip().strip("*\"'`").rstrip(".,;:。").strip()
    for start, end in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inside = shorter[len(start) : -len(end)]
        if shorter.startswith(start) and shorter.endswith(end) and inside and start not in inside:
            shorter = inside
    return shorter if shorter == answer else _trimmed(shorter)


def last_number(text: str) -> str | None:
    """The last number of a text; what is far before the end of the last digits is not looked at."""
    end = max(text.rfind(digit) for digit in "0123456789") + 1
    found = deque(_NUMBER.finditer(text, max(0, end - LONGEST), end + 3), maxlen=1)
    return found[0][0].replace("\\$", "").replace("$", "") if found else None


_WORD = re.compile(rf"(?!(?:{_NAMES})\b)[A-Za-z]{{2,}}(?:'[a-z]+)?[.,:;!?]*")
_NUMBER_AFTER_WORDS = re.compile(rf"(?:[A-Za-z']+[,:]? )+(?:\\\()?(?:{_NUMBER.pattern})(?:\$|\\\))?[.!]?")


def _words(line: str) -> list[str]:
    return [word for word in re.sub(r"\\text\s*\{[^{}]*\}", " ", line).split() if _WORD.fullmatch(word)]


def is_prose(text: str) -> bool:
    """Whether it is sentences about an answer rather than one: words, other than a unit after a value."""
    line = text.strip()
    if "\n" in line:
        return True
    words = _words(line)
    if len(words) < 2 and not any(len(word) > 3 for word in words):
        return bool(words) and _NUMBER_AFTER_WORDS.fullmatch(line) is not None
    return len(line) > LONGEST or not is_quantity(line)
