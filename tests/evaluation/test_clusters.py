"""The cluster bootstrap is that of an independent loop over resamples; problems, not tokens, are resampled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cera.evaluation.clusters import ClusterBootstrap


def by_hand(problems: np.ndarray, values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Draw whole problems one by one, put their tokens together, and take the mean of them."""
    generator = np.random.default_rng(seed)
    tokens = [values[problems == problem] for problem in np.unique(problems)]
    means = []
    for _ in range(resamples):
        drawn = [tokens[i] for i in generator.integers(len(tokens), size=len(tokens))]
        means.append(np.concatenate(drawn).mean())
    return tuple(np.quantile(means, [0.025, 0.975]))


def test_interval_is_that_of_an_independent_implementation():
    generator = np.random.default_rng(0)
    problems = np.repeat(np.arange(30), generator.integers(1, 20, size=30))
    values = generator.normal(size=30)[problems] + generator.normal(size=len(problems))
    interval = ClusterBootstrap(problems, resamples=20_000, seed=1).interval(values)
    assert [interval.low, interval.high] == pytest.approx(by_hand(problems, values, 20_000, seed=2), abs=0.02)
    as_if_independent = ClusterBootstrap(np.arange(len(values)), resamples=20_000).interval(values)
    assert interval.high - interval.low > 1.5 * (as_if_independent.high - as_if_independent.low)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_mean_and_interval_of_a_part(data, seed):
    generator = np.random.default_rng(seed)
    problems = generator.integers(5, size=data.draw(st.integers(1, 40)))
    values = generator.normal(size=len(problems))
    where = generator.random(len(problems)) < 0.7
    where[0] = True
    bootstrap = ClusterBootstrap(problems, resamples=500, seed=seed)
    assert bootstrap.mean(values, where) == pytest.approx(values[where].mean())
    interval = bootstrap.interval(values, where)
    shuffled = generator.permutation(len(problems))
    again = ClusterBootstrap(problems[shuffled] * 7 - 3, resamples=500, seed=seed)
    assert again.interval(values[shuffled], where[shuffled]).low == pytest.approx(interval.low)
    assert values[where].min() - 1e-9 <= interval.low <= interval.high <= values[where].max() + 1e-9


def test_long_answers_weigh_more():
    bootstrap = ClusterBootstrap([0, 1, 1, 1], resamples=1000)
    assert bootstrap.mean([1, 0, 0, 0]) == 0.25
    interval = bootstrap.interval([1, 0, 0, 0])
    assert (interval.low, interval.high) == (0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ClusterBootstrap([]), "one number for each token"),
        (lambda: ClusterBootstrap([0, 1], level=1.0), "level must be in"),
        (lambda: ClusterBootstrap([0, 1], resamples=0), "resamples must be at least 1"),
        (lambda: ClusterBootstrap([0, 1]).interval([1.0]), "one value for each of 2 tokens"),
        (lambda: ClusterBootstrap([0, 1]).interval([1.0, 2.0], [False, False]), "at least one token"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
