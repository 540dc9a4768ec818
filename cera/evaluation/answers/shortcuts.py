"""Decides at once about answers whose comparison needs no parser: those written alike, and plain numbers.

>>> settled("0.50", r"\\frac12"), settled("x+1", "1+x")
(True, None)
"""

from .notation import LONGEST, THOUSANDS, normalize
from .numbers import same_number


def settled(prediction: str, gold: str) -> bool | None:
    """Return what ``equality.check`` returns if that is evident; ``None`` if the answers must be compared there."""
    if max(len(prediction), len(gold)) > LONGEST:
        return False
    a, b = normalize(prediction), normalize(gold)
    if not a or not b:
        return False
    if a == b:
        return True
    return None if THOUSANDS.search(f"{prediction} {gold}") else same_number(a, b)
