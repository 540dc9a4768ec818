"""Whether a model's answer is the right one, and which part of its text was taken for the answer.

>>> judge(r"We add them, so it is \\boxed{\\frac{1}{2}}.", "0.5")
Verdict(correct=True, answer='\\\\frac{1}{2}', extracted_by='boxed')
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from .extraction import ExtractionRule, candidates, is_prose, marked, unmarked
from .number_words import in_digits
from .sandbox import Sandbox
from .shortcuts import settled
from .units import is_numeric


@dataclass(frozen=True)
class Verdict:
    """A judged answer: exactly the text that was compared with the gold answer.

    Attributes:
        correct: Whether it equals the gold answer.
        answer: The answer as the model wrote it; ``None`` if its text has none.
        extracted_by: What identified it, as in ``Extraction``; ``None`` without an answer.
    """

    correct: bool
    answer: str | None
    extracted_by: ExtractionRule | None


def judge(prediction: object, gold: object) -> Verdict:
    """Extract a prediction's final answer and compare it with the gold one. Never raises for an input, nor hangs.

    Both are whole solutions, of which the marked answer counts (see ``extract``), or bare answers. If a prediction, or
    what follows its "The answer is", is prose, and the gold answer is a number, then the last number in it is the
    answer, unless the prose itself equals the gold answer. If the gold answer is a number, one in words is its value.

    ``equality.check`` defines which answers are equal. It runs in a process of its own under limits of processor time
    and memory (``answers.sandbox``), which starts with the first comparison that needs it. Answers whose comparison
    exceeds them are not equal, and neither are those of more than ``LONGEST`` characters.

    Args:
        prediction: A model's text. Finite numbers stand for their text; any other object, such as ``None``, is no
            answer and equals none.
        gold: A data set's solution or answer; the same applies to it.

    Raises:
        SandboxError: The process cannot be started, or is stopped or ended from outside again and again.
    """
    solution, text = _text(gold), _text(prediction)
    gold_mark = marked(solution)
    target = gold_mark.answer if gold_mark else unmarked(solution)
    verdict = Verdict(False, None, None)
    numeric = is_numeric(target)
    for extraction in candidates(text, numeric):
        correct = _equal(in_digits(extraction.answer) if numeric else extraction.answer, target)
        if correct or extraction.extracted_by != "whole text" or not is_prose(text):
            verdict = Verdict(correct, extraction.answer, extraction.extracted_by)
        if correct:
            break
    return verdict


def is_correct(prediction: object, gold: object) -> bool:
    """Return whether a prediction's final answer equals the gold one; see ``judge``."""
    return judge(prediction, gold).correct


def _text(answer: object) -> str:
    if isinstance(answer, int | float) and not isinstance(answer, bool) and abs(answer) < sys.float_info.max:
        return str(answer)
    return answer if isinstance(answer, str) else ""


_sandbox = Sandbox(Path(__file__).with_name("equality.py"))


def _equal(prediction: str, gold: str) -> bool:
    verdict = settled(prediction, gold)
    return _sandbox.check(prediction, gold) if verdict is None else verdict
