from fractions import Fraction
from itertools import product
from math import comb
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cera.evaluation import statistics as significance
from cera.evaluation.statistics import (
    bootstrap,
    mcnemar,
    mean_interval,
    newcombe,
    paired_bootstrap,
    paired_difference,
    randomization_test,
    wilson,
)

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=40)
BITS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)


@settings(max_examples=50, deadline=None)
@given(SCORES)
def test_the_interval_lies_within_the_scores_and_grows_with_its_level(values):
    narrow, wide = (bootstrap(values, level, resamples=300) for level in (0.5, 0.99))
    assert wide.low <= narrow.low <= narrow.high <= wide.high
    if len(set(values)) > 1:
        assert min(values) - 1e-12 <= wide.low
        assert wide.high <= max(values) + 1e-12


@pytest.mark.parametrize("method", [lambda g, n: g.random(n) < 0.3, lambda g, n: g.binomial(16, 0.3, n) / 16])
def test_95_of_100_intervals_hold_the_mean(method):
    generator = np.random.default_rng(1)
    intervals = [bootstrap(method(generator, 80), resamples=500, seed=i) for i in range(300)]
    held = np.mean([interval.low <= 0.3 <= interval.high for interval in intervals])
    assert 0.91 <= held <= 0.98


def test_the_width_is_that_of_the_central_limit_theorem():
    values = np.random.default_rng(0).random(500)
    interval = bootstrap(values)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 500**0.5, rel=0.05)
    assert (interval.low + interval.high) / 2 == pytest.approx(values.mean(), abs=0.002)


def test_it_is_seeded_and_does_not_hold_all_resamples_at_once(monkeypatch):
    values = np.random.default_rng(0).random(50)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3) != bootstrap(values, seed=4)
    whole = bootstrap(values, resamples=1000)
    monkeypatch.setattr(significance, "CHUNK", 170)
    assert bootstrap(values, resamples=1000) == whole


@pytest.mark.parametrize("right", [0, 1])
def test_all_right_or_all_wrong_is_not_certain(right):
    few, many = bootstrap([right] * 10), bootstrap([right] * 1000)
    assert few.high - few.low > 0.2 > 0.01 > many.high - many.low > 0
    assert few.low == (0 if right == 0 else pytest.approx(1 / (1 + 1.959964**2 / 10)))
    assert few.high == (1 if right == 1 else pytest.approx(1 - 1 / (1 + 1.959964**2 / 10)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data(), st.sampled_from([0.5, 0.9, 0.95]))
def test_wilson_is_where_the_score_test_turns(problems, data, level):
    right = data.draw(st.integers(0, problems))
    interval = wilson(right, problems, level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    for share in (interval.low, interval.high):  # both ends solve |p^ - p| = z sqrt(p (1 - p) / n)
        assert (right / problems - share) ** 2 == pytest.approx(z**2 * share * (1 - share) / problems, abs=1e-9)
    assert interval.low <= right / problems + 1e-12
    assert right / problems - 1e-12 <= interval.high


@settings(max_examples=60, deadline=None)
@given(BITS)
def test_mcnemar_is_the_binomial_test_of_what_one_alone_solves(pairs):
    a, b = zip(*pairs, strict=True)
    test = mcnemar(a, b)
    assert (test.only_a, test.only_b) == (pairs.count((1, 0)), pairs.count((0, 1)))
    n = test.only_a + test.only_b
    chances = [Fraction(comb(n, i), 2**n) for i in range(n + 1)]
    # outcomes that are no likelier than the one that was seen
    assert test.p_value == pytest.approx(float(sum(p for p in chances if p <= chances[test.only_a])), rel=1e-12)
    swapped = mcnemar(b, a)
    assert (swapped.only_a, swapped.only_b, swapped.p_value) == (test.only_b, test.only_a, test.p_value)


@settings(max_examples=50, deadline=None)
@given(BITS)
def test_swapping_the_two_turns_the_difference(pairs):
    a, b = zip(*pairs, strict=True)
    forward, other = paired_bootstrap(a, b, resamples=200), paired_bootstrap(b, a, resamples=200)
    assert forward.difference == pytest.approx(np.mean(b) - np.mean(a), abs=1e-12)
    assert forward.difference == -other.difference
    assert forward.p_value == other.p_value
    assert (forward.interval.low, forward.interval.high) == pytest.approx(
        (-other.interval.high, -other.interval.low), abs=1e-9
    )


def test_pairs_find_what_two_separate_intervals_do_not():
    hard = np.random.default_rng(0).random(300)
    better = np.clip(hard + 0.02, 0, 1)
    assert bootstrap(better).low < bootstrap(hard).high
    result = paired_bootstrap(hard, better)
    assert result.interval.low > 0
    assert result.p_value < 0.001
    assert paired_bootstrap(hard, hard).p_value == 1


def test_of_equal_models_one_in_twenty_is_called_different():
    generator = np.random.default_rng(2)
    values = [paired_bootstrap(*(generator.random((2, 100)) < 0.5), resamples=400).p_value for _ in range(300)]
    assert 0.02 <= np.mean(np.array(values) < 0.05) <= 0.09


def test_scores_of_0_and_1_have_wilsons_interval_and_others_are_resampled():
    rare = [1] * 6 + [0] * 194
    interval = mean_interval(rare)
    assert (interval.low, interval.high) == pytest.approx((0.01382, 0.06389), abs=1e-5)  # by hand
    assert interval == wilson(6, 200) != bootstrap(rare)
    partial = np.random.default_rng(0).random(30)
    assert mean_interval(partial, seed=3) == bootstrap(partial, seed=3)


def paired(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[int], list[int]]:
    """Two evaluations by the numbers of problems that both, one, or none of them solves."""
    return [1] * (both + only_a) + [0] * (only_b + neither), [1] * both + [0] * only_a + [1] * only_b + [0] * neither


def test_newcombes_interval_of_his_example():
    interval = newcombe(*paired(both=36, only_a=2, only_b=12, neither=0))
    assert (interval.low, interval.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)  # Newcombe (1998), method 10
    swapped = newcombe(*paired(both=36, only_a=12, only_b=2, neither=0))
    assert (swapped.low, swapped.high) == pytest.approx((-0.3404, -0.0569), abs=5e-5)


def test_few_problems_on_one_side_are_not_significant():
    a, b = paired(both=100, only_a=0, only_b=4, neither=96)
    result = paired_difference(a, b)
    assert result.p_value == 0.125  # 2 / 2^4
    assert result.interval.low < 0 < result.interval.high
    assert paired_bootstrap(a, b).interval.low > 0  # which resampling cannot see
    partial = np.array(a) * 0.5
    better = partial + np.array([0, 0.1, 0.2, 0.3, 0.4] + [0] * 195)
    assert paired_difference(partial, better).p_value == 0.125


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-0.5, -0.25, 0, 0.25, 0.5, 0.75]), min_size=1, max_size=10))
def test_the_randomization_test_counts_all_signs(differences):
    sums = [abs(sum(d * s for d, s in zip(differences, signs, strict=True))) for signs in all_signs(len(differences))]
    expected = np.mean([value >= abs(sum(differences)) - 1e-9 for value in sums])
    assert randomization_test(differences) == pytest.approx(expected, abs=1e-12)


def all_signs(count: int) -> list[tuple[int, ...]]:
    return list(product((-1, 1), repeat=count))


def test_drawn_signs_estimate_the_exact_p_value_in_bounded_memory(monkeypatch):
    differences = np.random.default_rng(0).normal(0.3, 1, 12)
    exact = randomization_test(differences)
    monkeypatch.setattr(significance, "CHUNK", 120)  # ten resamples at a time
    assert randomization_test(differences, resamples=4000) == pytest.approx(exact, abs=0.03)
    assert 0.05 < exact < 0.95


def test_of_equal_models_that_differ_in_few_problems_at_most_one_in_twenty_is_called_different():
    """Unlike by resampling, which calls more of them different."""
    generator = np.random.default_rng(0)
    exact, resampled = [], []
    for _ in range(300):
        differences = np.zeros(200)
        differences[:4] = generator.choice([-1, 1], 4) * [0.25, 0.5, 0.5, 0.5]
        a, b = np.maximum(-differences, 0), np.maximum(differences, 0)
        result = paired_bootstrap(a, b, resamples=400)
        exact.append(result.p_value < 0.05)
        resampled.append(not result.interval.low <= 0 <= result.interval.high)
    assert np.mean(exact) <= 0.05 < np.mean(resampled)


def test_95_of_100_of_newcombes_intervals_hold_the_difference():
    generator = np.random.default_rng(0)
    chances = np.array([0.3, 0.02, 0.06, 0.62])  # both, only A, only B, neither
    drawn = generator.multinomial(200, chances, size=1000)
    intervals = [newcombe(*paired(*counts)) for counts in drawn.tolist()]
    assert 0.93 <= np.mean([interval.low <= 0.04 <= interval.high for interval in intervals]) <= 0.98


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: bootstrap([]), "values must be one score for each problem"),
        (lambda: bootstrap([0.5, 1.5]), r"values must be scores in \[0, 1\], got 1.5"),
        (lambda: bootstrap([float("nan")]), "got nan"),
        (lambda: bootstrap([0, 1], level=95), "level must be in .*, got 95"),
        (lambda: bootstrap([0, 1], resamples=0), "resamples must be at least 1, got 0"),
        (lambda: paired_bootstrap([1, 0], [1]), "same problems, got 2 and 1"),
        (lambda: mcnemar([1, 0], [1, 0.5]), "0 and 1 only"),
        (lambda: newcombe([1, 0.5], [1, 0]), "0 and 1 only"),
        (lambda: mcnemar([1, 0], [1]), "same problems, got 2 and 1"),
        (lambda: wilson(3, 2), "got 3 of 2"),
        (lambda: wilson(1, 2, 2.0), "level"),
    ],
)
def test_what_cannot_be_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
