import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cera.evaluation.pass_at_k import pass_at_k


def exact(n: int, c: int, k: int) -> Fraction:
    return 1 - Fraction(math.comb(n - c, k), math.comb(n, k))


@pytest.mark.parametrize("n", range(1, 9))
def test_it_is_the_expectation_over_all_subsets(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations([True] * c + [False] * (n - c), k))
            share = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(n, c, k) == pytest.approx(share, rel=1e-14)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_it_is_the_quotient_of_binomials(data):
    n = data.draw(st.integers(1, 2000))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact(n, c, k)), rel=1e-12)


@pytest.mark.parametrize(("c", "k"), [(0, 9), (1, 1), (1, 500_000), (3, 200), (500, 1000), (10**6 - 5, 4)])
def test_a_million_samples_are_as_exact_as_ten(c, k):
    n = 10**6
    fewer = min(c, k)  # the quotient is symmetric in c and k, and its binomials have millions of digits
    reference = Fraction(math.prod(range(n - c - k + 1, n - max(c, k) + 1)) if fewer else 1)
    reference /= math.prod(range(n - fewer + 1, n + 1)) if fewer else 1
    assert pass_at_k(n, c, k) == pytest.approx(float(1 - max(reference, 0)), rel=1e-12)


def test_many_right_of_many_ends_at_once():
    assert pass_at_k(10**9, 5 * 10**8, 4 * 10**8) == pytest.approx(1.0, abs=1e-15)
    assert pass_at_k(10**9, 10**9, 10**9) == 1


def test_arrays_broadcast_and_numbers_stay_numbers():
    n, c, k = np.array([10, 20]), np.array([3, 0]), np.array([[1], [5], [10]])
    estimate = pass_at_k(n, c, k)
    assert estimate.shape == (3, 2)
    assert estimate.dtype == np.float64
    np.testing.assert_allclose(
        estimate, [[float(exact(a, b, int(d[0]))) for a, b in zip(n, c, strict=True)] for d in k]
    )
    assert type(pass_at_k(10, 3, 5)) is float
    assert pass_at_k(np.array([], int), np.array([], int), 1).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((10, 3, 11), "k=11 .* n=10"),
        (([10, 5], [3, 6], 1), "c=6 of n=5"),
        ((10, 3, 0), "k must be at least 1, got 0"),
        ((10, -3, 1), "c must be zero or more, got -3"),
        ((10, 3, 1.5), "k must be integers, got 1.5"),
        ((10, True, 1), "c must be integers, got True"),
        ((10.0, 3, 1), "n must be integers, got 10.0"),
    ],
)
def test_what_cannot_be_is_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        pass_at_k(*arguments)
