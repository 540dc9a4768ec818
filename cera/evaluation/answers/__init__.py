"""Finds the final answers of worked solutions and decides whether they are right.

    >>> from cera.evaluation.answers import judge
    >>> judge("Half of it is left, so the answer is 50%.", r"\\frac{1}{2}").correct
    True

Modules here import each other relatively, and nothing of the package around them: the process that compares answers
(``sandbox``) imports this folder alone, without torch.
"""

from .correctness import Verdict, is_correct, judge
from .extraction import Extraction, extract

__all__ = ["Extraction", "Verdict", "extract", "is_correct", "judge"]
