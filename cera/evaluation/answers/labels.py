"""Compares answers that are labels by convention: the options of a question, and times of the day.

>>> same_option("(B) 12", "(b)"), same_option("B", "12")
(True, None)
>>> same_time("3:45 p.m.", "15:45")
True
"""

import re

from .notation import plain

_OPTION = re.compile(
    r"(?:(?i:(?:the )?(?:option|choice)|I (?:choose|pick)) )?"  # Option B
    r"(?:\(([A-Za-z])\)|\(([A-Z])\):?\s?\d.*|\(?([A-Z])[).:]+(?: .+)?|([A-Z]))"  # (b) | (B) 12 | B. Two | B
)
_TIME = re.compile(
    r"(\d{1,2})(?=\s*[:ap])(?:\s*:\s*(\d\d))?(?:\s*:\s*(\d\d))?\s*(?:([ap])\.?\s?m)?\.?", re.IGNORECASE
)  # 14:30 | 5 a.m. | 4:51:06 PM
_HOUR = re.compile(r"(\d{1,2})()()()")  # 5


def same_option(a: str, b: str) -> bool | None:
    """Return whether both name the same option of a question; ``None`` unless both do, one by more than a letter."""
    options = [_OPTION.fullmatch(plain(text)) for text in (a, b)]
    if not all(options) or not any(option and len(option[0]) > 1 for option in options):
        return None
    first, second = (next(letter for letter in option.groups() if letter) for option in options if option)
    return first.upper() == second.upper()


def same_time(a: str, b: str) -> bool | None:
    """Return whether both are the same time of the day; ``None`` unless one is a time, and the other a time or an hour.

    If only one of them says whether it is before noon, the question has said so.
    """
    first, second = _TIME.fullmatch(plain(a)), _TIME.fullmatch(plain(b))
    if first is None and second is None:
        return None
    first, second = first or _HOUR.fullmatch(plain(a)), second or _HOUR.fullmatch(plain(b))
    if first is None or second is None:
        return None
    (hour_a, *rest_a, half_a), (hour_b, *rest_b, half_b) = first.groups(), second.groups()
    if [int(part or 0) for part in rest_a] != [int(part or 0) for part in rest_b]:
        return False
    same = _hour(hour_a, half_a) == _hour(hour_b, half_b)
    return same or (bool(half_a) != bool(half_b) and int(hour_a) == int(hour_b))


def _hour(hour: str, half: str | None) -> int:
    """Return the hour of the day in [0, 24), of a clock with 12 hours if ``half`` is ``a`` or ``p``."""
    return int(hour) % 12 + 12 * (half.lower() == "p") if half else int(hour)
