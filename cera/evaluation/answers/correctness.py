"""Whether a model's answer is the right one, whatever the model wrote."""

import sys
from pathlib import Path

from cera.evaluation.answers import equality
from cera.evaluation.answers.extraction import bare, is_prose, last_number, marked
from cera.evaluation.answers.notation import LONGEST
from cera.evaluation.answers.sandbox import Sandbox
from cera.evaluation.answers.units import is_numeric


def is_correct(prediction: object, gold: object) -> bool:
    """Whether a prediction's final answer is the gold one. It does not raise for any input, and does not hang.

    Each of them is a whole solution, of which the marked answer counts (see ``extract``), or a bare answer. Where a
    prediction, or what follows its "The answer is", is prose, and the gold answer is a number, the last number counts.

    What is equal, ``cera.evaluation.answers.equality.check`` says. It runs in a process of its own under limits of
    processor time and memory (``answers.sandbox``), which starts with the first comparison that needs it.
    Answers whose comparison overruns are not equal, and neither are those of more than ``LONGEST`` characters.

    Args:
        prediction: A model's text. Finite numbers stand for their text; another object, such as ``None``, is no
            answer, and so equal to none.
        gold: A data set's solution or answer; the same goes for it.

    Raises:
        RuntimeError: The process cannot be started or was ended from outside.
    """
    solution, text = _text(gold), _text(prediction)
    right, ours = marked(solution), marked(text)
    target = right.answer if right else bare(solution)
    if _equal(ours.answer if ours else bare(text), target):
        return True
    said = ours.answer if ours else text
    if (ours and ours.how != "phrase") or not is_prose(said) or not is_numeric(target[:LONGEST]):
        return False
    return _equal(last_number(said) or "", target)


def _text(answer: object) -> str:
    if isinstance(answer, int | float) and not isinstance(answer, bool) and abs(answer) < sys.float_info.max:
        return str(answer)
    return answer if isinstance(answer, str) else ""


_sandbox = Sandbox(Path(equality.__file__), package=equality.__name__.rpartition(".")[0])


def _equal(prediction: str, gold: str) -> bool:
    settled = equality.settled(prediction, gold)
    return _sandbox.check(prediction, gold) if settled is None else settled
