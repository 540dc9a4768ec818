"""The rules of verdicts, on synthetic summaries from known distributions."""

from dataclasses import replace

import numpy as np
import pytest
from made_summaries import difference_test, normal, verdict
from scipy import stats

from cera.studies.estimates import Estimate
from cera.studies.selection import student
from cera.studies.verdicts import adjust, decide, needed, together


@pytest.mark.parametrize(
    ("test", "difference", "deviation", "seeds", "expected", "why"),
    [
        (difference_test(), -0.05, 0.005, 5, "holds", "the claimed direction"),
        (difference_test(), 0.05, 0.005, 5, "does not hold", "the other direction"),
        (difference_test("above"), 0.05, 0.005, 5, "holds", "the claimed direction"),
        (difference_test("above"), -0.05, 0.005, 5, "does not hold", "the other direction"),
        (difference_test(), -0.004, 0.0005, 5, "does not hold", "a difference smaller than the margin"),
        (difference_test(), -0.01, 0.05, 5, "undecided", "the interval has zero in it"),
        (difference_test(), -0.05, 0.005, 1, "undecided", "no interval of fewer than two seeds"),
        (difference_test(size=0.05), -0.05, 0.005, 5, "holds", "direction and size"),
        (difference_test(size=0.05), -0.09, 0.005, 5, "holds", "direction and size"),
        (difference_test(size=0.2), -0.05, 0.005, 5, "does not hold", "falls short of the size"),
        (difference_test(size=0.2), -0.01, 0.05, 5, "does not hold", "falls short of the size"),
        (difference_test(size=0.02), -0.01, 0.05, 5, "undecided", "the interval has zero in it"),
        (difference_test("within"), 0.0, 0.001, 5, "holds", "within the margin"),
        (difference_test("within"), 0.05, 0.001, 5, "does not hold", "outside"),
        (difference_test("within"), -0.05, 0.001, 5, "does not hold", "outside"),
        (difference_test("within"), 0.0, 0.05, 5, "undecided", "across the edge"),
    ],
)
def test_each_verdict_is_reached(test, difference, deviation, seeds, expected, why) -> None:
    summary = normal({"lora": 0.0, "cera": difference}, deviation, seeds)
    found = verdict(test, summary)
    assert found[0] == expected
    assert why in found[1]


def test_swapping_the_methods_turns_the_verdict_around() -> None:
    """A negative control: an error of direction does not pass."""
    summary = normal({"lora": 0.0, "cera": -0.05}, 0.005, 5)
    swapped = difference_test(cera=-1.0, lora=1.0)
    assert verdict(difference_test(), summary)[0] == "holds"
    assert verdict(swapped, summary)[0] == "does not hold"


def test_a_true_difference_of_zero_is_rarely_called_one() -> None:
    verdicts = [verdict(difference_test(), normal({"lora": 0.0, "cera": 0.0}, 0.02, 3, i))[0] for i in range(300)]
    assert verdicts.count("holds") <= 15  # 2.5% are 7.5; more than 15 have a chance of half a percent
    assert "does not hold" in verdicts  # as rarely, in the other direction


def test_one_family_makes_a_small_p_value_undecided() -> None:
    estimate = Estimate(-0.05, -0.09, -0.01, 0.03, 5)
    tests = [difference_test()] * 3
    alone, together_ = adjust(tests[:1], [estimate]), adjust(tests, [estimate] * 3)
    assert alone == [0.03]
    assert together_ == pytest.approx([0.09] * 3)
    assert decide(tests[0], estimate, alone[0]).verdict == "holds"
    assert "not significant after Holm" in decide(tests[0], estimate, together_[0]).why
    # another study is another family, and claims of equality are in none
    other = replace(tests[0], study="smol_made")
    assert adjust([tests[0], other, difference_test("within")], [estimate] * 3) == [0.03, 0.03, None]


def test_the_number_of_seeds_that_it_says_decides_it() -> None:
    """With so many seeds, a true difference of the margin is found in 80 of 100 studies."""
    test, deviation = difference_test(margin=0.01), 0.02
    generator = np.random.default_rng(0)
    sample = generator.standard_normal(8)
    sample = list((sample - sample.mean()) / sample.std(ddof=1) * deviation)  # the spread is known exactly
    found = student(sample)
    assert found is not None
    said = needed(test, Estimate(*found))
    number = int(said.split()[1])
    assert said == f"about {number} seeds would decide it"
    studies = test.margin + deviation * generator.standard_normal((2000, number))
    share = (stats.ttest_1samp(studies, 0, axis=1).pvalue < 0.05).mean()
    assert 0.75 < share < 0.86


def test_a_claim_needs_all_of_its_tests() -> None:
    assert together(["holds", "holds"]) == "holds"
    assert together(["holds", "undecided"]) == "undecided"
    assert together(["holds", "not tested here yet"]) == "undecided"
    assert together(["undecided", "does not hold", "not tested here yet"]) == "does not hold"
    assert together(["not tested here yet"]) == together([]) == "not tested here yet"


def test_many_problems_are_said_as_a_factor() -> None:
    estimate = Estimate(0.0, -0.05, 0.05, 1.0, 3, 200)
    normal_quantiles = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    factor = (normal_quantiles * 0.05 / stats.norm.ppf(0.975) / 0.01) ** 2
    assert (
        needed(difference_test(), estimate)
        == f"about {int(factor) + 1} times as many seeds and problems would decide it"
    )
    assert "near the edge" in needed(difference_test(margin=0.2), estimate)
    assert "more than 10,000 seeds" in needed(difference_test(margin=1e-6), replace(estimate, problems=None))
