"""When a claim holds: the rules, which were written down before the studies that they judge.

    decide(test, Estimate(mean=0.03, low=0.02, high=0.04, p_value=0.001, seeds=3), adjusted=0.004).verdict  # "holds"

The interval is the 95% interval of the test's number, less what it is measured against.

- A number within the margin: the claim holds if the interval lies within the margin, does not hold if it lies wholly
  outside, and is undecided otherwise. (This is the test of equivalence by two one-sided tests at 2.5% each.)
- A number above zero (below is alike): the claim does not hold if the interval lies within the margin, since the
  difference is then too small to matter; if it lies wholly below the size that the claim names; or if it lies below
  zero. It holds if the interval lies above zero otherwise. What rests on an interval that excludes zero also needs
  Holm's p-value below 0.05, over all such tests of one study. All else is undecided.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from cera.studies.claims import ClaimTest
from cera.studies.estimates import Estimate
from cera.studies.selection import LEVEL, holm

Verdict = Literal["holds", "does not hold", "undecided", "not tested here yet"]

ALPHA = 1 - LEVEL
POWER = 0.8
"""Power that the number of seeds of an undecided test is for."""

MOST = 10_000
"""Numbers of seeds above this one are not told apart."""

NEAR = "precise enough, but too near the edge"


@dataclass(frozen=True)
class Decision:
    """What a test says of its claim.

    Attributes:
        verdict: The verdict.
        why: The rule that decided, in words.
        adjusted: Holm's p-value; ``None`` of a test that needs none.
    """

    verdict: Verdict
    why: str
    adjusted: float | None = None


def decide(test: ClaimTest, estimate: Estimate | None, adjusted: float | None, unit: str = "seeds") -> Decision:
    """Return the verdict of one test by the rules above.

    Args:
        test: The test.
        estimate: Its number, less ``test.against``.
        adjusted: Its p-value after Holm.
        unit: What the estimate is a sample of.

    Raises:
        ValueError: The number has no interval.
    """
    if estimate is None:
        return Decision("undecided", "nothing to compare")
    if estimate.low is None or estimate.high is None:
        return Decision("undecided", f"no interval of fewer than two {unit}")
    sign = -1 if test.side == "below" else 1
    low, high = sorted(sign * end for end in (estimate.low, estimate.high))
    within = -test.margin < low and high < test.margin
    if test.side == "within":
        if within:
            return Decision("holds", "within the margin")
        if low >= test.margin or high <= -test.margin:
            return Decision("does not hold", "outside of the margin")
        return Decision("undecided", f"across the edge of the margin; {needed(test, estimate, unit)}")
    if within:
        return Decision("does not hold", "a difference smaller than the margin", adjusted)
    if test.size is not None and high < test.size:
        return Decision("does not hold", "falls short of the size", adjusted)
    if low <= 0 <= high:
        return Decision("undecided", f"the interval has zero in it; {needed(test, estimate, unit)}", adjusted)
    if adjusted is None or adjusted >= ALPHA:
        return Decision("undecided", f"not significant after Holm; {needed(test, estimate, unit)}", adjusted)
    if high < 0:
        return Decision("does not hold", "the other direction", adjusted)
    return Decision("holds", "the claimed direction" + ("" if test.size is None else " and size"), adjusted)


def needed(test: ClaimTest, estimate: Estimate, unit: str = "seeds") -> str:
    """Return how many seeds would decide a test with power 0.8, by the spread that was observed.

    That is, if the true difference were the margin; if it were zero, of a claim of equality or against another number.

    Args:
        test: The test.
        estimate: Its number, with an interval.
        unit: What the estimate is a sample of.

    Raises:
        ValueError: The number has no interval.
    """
    if estimate.low is None or estimate.high is None:
        raise ValueError("an estimate without an interval has no spread.")
    half = (estimate.high - estimate.low) / 2
    power = (1 + POWER) / 2 if test.side == "within" else POWER
    away = abs(test.against) or test.margin
    if estimate.problems is not None or unit == "methods":
        normal = float(stats.norm.ppf(1 - ALPHA / 2))
        factor = ((normal + float(stats.norm.ppf(power))) * half / normal / away) ** 2
        both = unit if estimate.problems is None else f"{unit} and problems"
        return NEAR if factor <= 1 else f"about {math.ceil(factor)} times as many {both} would decide it"
    deviation = half / float(stats.t.ppf(1 - ALPHA / 2, estimate.seeds - 1)) * math.sqrt(estimate.seeds)
    numbers = np.arange(2, MOST + 1)
    quantiles = stats.t.ppf(1 - ALPHA / 2, numbers - 1) + stats.t.ppf(power, numbers - 1)
    enough = numbers[quantiles * deviation / np.sqrt(numbers) <= away]
    if not enough.size:
        return f"more than {MOST:,} {unit} would be needed to decide it"
    return NEAR if enough[0] <= estimate.seeds else f"about {enough[0]} {unit} would decide it"


def adjust(tests: Sequence[ClaimTest], estimates: Sequence[Estimate | None]) -> list[float | None]:
    """Return Holm's p-values; the family of a test is all tests of the same study whose verdict rests on a p-value."""
    adjusted: list[float | None] = [None] * len(tests)
    families: dict[str, list[int]] = {}
    for index, (test, estimate) in enumerate(zip(tests, estimates, strict=True)):
        if test.side != "within" and estimate is not None and estimate.p_value is not None:
            families.setdefault(test.study, []).append(index)
    for family in families.values():
        p_values = [estimate.p_value for index in family if (estimate := estimates[index]) is not None]
        for index, value in zip(family, holm([p for p in p_values if p is not None]), strict=True):
            adjusted[index] = value
    return adjusted


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict of a claim from those of its tests, all of which must hold."""
    if not verdicts or set(verdicts) == {"not tested here yet"}:
        return "not tested here yet"
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if set(verdicts) == {"holds"} else "undecided"
