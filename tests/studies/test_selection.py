"""Selection and statistics, against definitions and independent implementations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cera.studies.selection import choose, complete, difference, holm, t_interval

values = st.floats(0.5, 100)
seeds = st.dictionaries(
    st.sampled_from(["seed0", "seed1", "seed2"]), values | st.none() | st.just(math.nan), min_size=1
)
grids = st.dictionaries(st.floats(1e-6, 1, allow_subnormal=False), seeds, min_size=1, max_size=6)


@given(grids, st.sampled_from(["min", "max"]))
def test_the_chosen_value_has_the_best_mean_of_those_with_all_seeds(grid, goal) -> None:
    results = {str(rate): by_seed for rate, by_seed in grid.items()}
    numbers = {str(rate): rate for rate in grid}
    choice = choose(results, numbers, goal)
    means = {label: np.mean(list(each.values())) for label, each in results.items() if complete(each)}
    assert set(choice.excluded) == results.keys() - means.keys()
    if not means:
        assert (choice.value, choice.edge) == (None, None)
        return
    best = min(means.values()) if goal == "min" else max(means.values())
    assert means[choice.value] == pytest.approx(best, rel=1e-12)
    lowest, highest = min(numbers.values()), max(numbers.values())
    expected = {lowest: "lowest", highest: "highest"}.get(numbers[choice.value])
    assert choice.edge == ("only" if len(grid) == 1 else expected)


@given(grids)
def test_a_run_without_a_result_never_helps_its_value(grid) -> None:
    """Whatever it could have been: a value that loses a run is not chosen, and the others are as good as before."""
    results = {str(rate): {**by_seed} for rate, by_seed in grid.items()}
    before = choose(results, {}).value
    if before is None:
        return
    results[before] = {**results[before], "seed9": None}
    after = choose(results, {})
    assert after.value != before
    assert before in after.excluded


def test_values_that_are_no_numbers_have_no_edge() -> None:
    assert choose({"a": {"": 1.0}, "b": {"": 2.0}}, {}).edge is None
    assert choose({"a": {"": 1.0}}, {"a": 1.0}).edge == "only"


@given(st.lists(values, min_size=2, max_size=8, unique=True))
def test_intervals_are_scipys(sample) -> None:
    low, high = t_interval(sample)
    expected = stats.ttest_1samp(sample, 0.0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)


def test_one_seed_has_no_interval() -> None:
    assert t_interval([1.0]) is None
    paired = difference({"seed0": 2.0}, {"seed0": 1.5})
    assert paired == (-0.5, None, None, None, 1)
    assert difference({"seed0": 2.0}, {"seed1": 1.5}) is None


@given(st.lists(st.tuples(values, values), min_size=3, max_size=8))
def test_differences_are_scipys_paired_test_over_shared_seeds(pairs) -> None:
    first = {f"seed{i}": a for i, (a, _) in enumerate(pairs)}
    second = {f"seed{i}": b for i, (_, b) in enumerate(pairs)}
    a, b = np.array(pairs).T
    if np.ptp(b - a) < 1e-6:
        return
    paired = difference({**first, "seed_of_first": 1.0}, {**second, "seed_of_second": 2.0, "seed_failed": None})
    expected = stats.ttest_rel(b, a)
    interval = expected.confidence_interval(0.95)
    assert paired.p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (paired.low, paired.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    assert paired.seeds == len(pairs)


def test_equal_differences() -> None:
    ones, twos = {"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 2.0}
    assert difference(ones, twos).p_value == 0.0
    assert difference(ones, ones).p_value == 1.0


def reference_holm(p_values: list[float]) -> list[float]:
    """Step down by definition: the largest over all hypotheses up to it of (tests left) * p."""
    ordered = sorted(p_values)
    return [min(1.0, max((len(ordered) - i) * p for i, p in enumerate(ordered) if p <= value)) for value in p_values]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_by_its_definition(p_values) -> None:
    adjusted = holm(p_values)
    assert adjusted == pytest.approx(reference_holm(p_values), rel=1e-12)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_holm_is_that_of_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = [0.2, 0.001, 0.03, 0.03, 0.6]
    assert holm(p_values) == pytest.approx(list(multitest.multipletests(p_values, method="holm")[1]))
