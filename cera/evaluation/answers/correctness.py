"""Whether a model's answer is the right one, whatever the model wrote."""

from pathlib import Path

from cera.evaluation.answers import equality
from cera.evaluation.answers.extraction import bare, is_prose, last_number, marked
from cera.evaluation.answers.notation import LONGEST
from cera.evaluation.answers.units import is_numeric
from cera.evaluation.sandbox import Sandbox


def is_correct(prediction: str, gold: str) -> bool:
    """Whether a prediction's final answer is the gold one. It does not raise for any text, and does not hang.

    Each of them is a whole solution, of which the marked answer counts (see ``extract``), or a bare answer. Where a
    prediction is prose without a marked answer, and the gold answer is a number, the last number counts.

    What is equal, ``cera.evaluation.answers.equality.check`` says. It runs in a process of its own under limits of
    processor time and memory (``cera.evaluation.sandbox``), which starts with the first comparison that needs it.
    Answers whose comparison overruns are not equal, and neither are those of more than ``LONGEST`` characters.

    Args:
        prediction: A model's text.
        gold: A data set's solution or answer.

    Raises:
        RuntimeError: The process cannot be started or was ended from outside.
    """
    right, ours = marked(gold), marked(prediction)
    target = right.answer if right else bare(gold)
    if _equal(ours.answer if ours else bare(prediction), target):
        return True
    if ours or not is_prose(prediction) or not is_numeric(target[:LONGEST]):
        return False
    return _equal(last_number(prediction) or "", target)


_sandbox = Sandbox(Path(equality.__file__), package=equality.__name__.rpartition(".")[0])


def _equal(prediction: str, gold: str) -> bool:
    settled = equality.settled(prediction, gold)
    return _sandbox.check(prediction, gold) if settled is None else settled
