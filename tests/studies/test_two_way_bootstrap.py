"""The bootstrap over seeds and problems, against its variance in closed form and by its coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cera.evaluation.report import problem_scores
from cera.studies.problem_scores import ProblemScores
from cera.studies.two_way_bootstrap import RESAMPLES, resampled_means, two_way_bootstrap


def crossed(generator: np.random.Generator, seeds: int, problems: int, sigmas: tuple[float, float, float]):
    """Scores with random effects of seeds, problems and of both, whose mean is zero in the population."""
    by_seed, by_problem, both = (sigma * generator.standard_normal(n) for sigma, n in zip(
        sigmas, (seeds, problems, seeds * problems), strict=True))  # fmt: skip
    return by_seed[:, None] + by_problem + both.reshape(seeds, problems)


def mean_squares(scores: np.ndarray) -> tuple[float, float, float]:
    """The mean squares of a balanced two-way design without replication: of seeds, problems and the residual."""
    seeds, problems = scores.shape
    rows, columns = scores.mean(1), scores.mean(0)
    residual = scores - rows[:, None] - columns + scores.mean()
    return (
        problems * rows.var(ddof=1),
        seeds * columns.var(ddof=1),
        (residual**2).sum() / ((seeds - 1) * (problems - 1)),
    )


@given(st.integers(2, 6), st.integers(2, 60), st.tuples(*[st.floats(0.01, 3)] * 3), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_its_variance_is_that_of_the_balanced_two_way_design(seeds, problems, sigmas, number) -> None:
    """In closed form: (MS_seeds + MS_problems + MS_residual (S - 1)(P - 1) / (S P)) / (S P)."""
    scores = crossed(np.random.default_rng(number), seeds, problems, sigmas)
    of_seeds, of_problems, residual = mean_squares(scores)
    size = seeds * problems
    expected = (of_seeds + of_problems + residual * (seeds - 1) * (problems - 1) / size) / size
    variance = resampled_means(scores).var()
    assert variance == pytest.approx(expected, rel=0.1)
    # a negative control: one factor alone is less by its mean square
    for alone in (of_seeds / size, of_problems / size):
        if alone < 0.7 * expected:
            assert variance != pytest.approx(alone, rel=0.1)


def covers(sigmas: tuple[float, float, float], seeds: int, problems: int, interval) -> float:
    """The share of data sets whose interval has the population's mean in it."""
    generator, hits, trials = np.random.default_rng(1), 0, 200
    for _ in range(trials):
        low, high = interval(crossed(generator, seeds, problems, sigmas))
        hits += low <= 0 <= high
    return hits / trials


def over_problems(scores: np.ndarray) -> tuple[float, float]:
    """The interval over problems alone, as if the seeds were all that there are."""
    found = two_way_bootstrap(scores.mean(0, keepdims=True))
    return found.low, found.high


def both(scores: np.ndarray) -> tuple[float, float]:
    found = two_way_bootstrap(scores)
    return found.low, found.high


def test_intervals_cover_the_mean_of_new_seeds_and_problems(monkeypatch) -> None:
    monkeypatch.setattr("cera.studies.two_way_bootstrap.RESAMPLES", 1000)
    assert 0.9 <= covers((0.1, 1.0, 1.0), 5, 100, both) <= 0.99
    assert covers((0.4, 1.0, 1.0), 5, 100, both) >= 0.86  # five seeds are few to tell their own spread
    assert covers((0.4, 1.0, 1.0), 5, 100, over_problems) < 0.7  # a negative control: the seeds are a sample, too


def test_differences_are_paired(monkeypatch) -> None:
    """What two methods have in common, the difficulty of problems and the luck of seeds, is not in their difference."""
    generator = np.random.default_rng(0)
    common, noise = crossed(generator, 3, 200, (1, 1, 0)), 0.01 * generator.standard_normal((3, 200))
    paired = two_way_bootstrap(common + 0.1 + noise - common)
    assert paired.low > 0.09
    assert paired.high < 0.11
    assert paired.p_value == pytest.approx(2 / (RESAMPLES + 1))
    alone = two_way_bootstrap(common + 0.1)
    assert alone.high - alone.low > 10 * (paired.high - paired.low)


def test_p_values_agree_with_intervals_and_are_uniform_where_there_is_no_difference() -> None:
    generator = np.random.default_rng(3)
    p_values = []
    for _ in range(60):
        found = two_way_bootstrap(crossed(generator, 4, 40, (0.05, 1, 0.1)))
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
        p_values.append(found.p_value)
    assert 0.3 < np.mean(p_values) < 0.7
    assert two_way_bootstrap(np.zeros((2, 5))) == (0.0, 0.0, 0.0, 1.0)


def test_one_seed_is_resampled_by_problems_and_one_number_not_at_all() -> None:
    scores = np.random.default_rng(0).random((1, 50))
    found = two_way_bootstrap(scores)
    error = scores.std(ddof=1) / 50**0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert two_way_bootstrap(np.array([[0.5]])) == (0.5, None, None, None)
    with pytest.raises(ValueError, match=r"\(seeds, problems\), got an array of shape \(3,\)"):
        two_way_bootstrap(np.ones(3))
    assert two_way_bootstrap(scores) == found


# Scores of a run by problem


def records(correct: list[list]) -> list[dict]:
    return [{"key": f"task/{i}", "correct": samples} for i, samples in enumerate(correct)]


@given(st.integers(1, 40), st.integers(1, 12), st.randoms())
def test_scores_are_those_of_the_evaluation(samples, problems, random) -> None:
    made = records([[random.random() < 0.4 for _ in range(samples)] for _ in range(problems)])
    scores = ProblemScores.of_records(made)
    for metric in ("pass@1", f"pass@{samples}", "score"):
        assert scores.metric(metric) == pytest.approx(problem_scores(made, metric), abs=1e-12)
    assert len(scores.counts) == problems * (1 if samples < 36 else 2)
    assert scores.metric("accuracy") is None


def test_partial_credit_is_rounded() -> None:
    made = records([[0.0], [1.0], [1 / 3], [0.5]])
    scores = ProblemScores.of_records(made)
    assert scores.metric("score") == pytest.approx([0, 1, 1 / 3, 0.5], abs=4e-4)
    assert scores.metric("pass@1") is None
    assert scores.counts == "00ZZC0I0"


def test_other_problems_are_told_apart() -> None:
    ones = records([[True], [False]])
    assert ProblemScores.of_records(ones).problems != ProblemScores.of_records(ones[::-1]).problems
    assert ProblemScores.of_records(records([[True], [False, True]])) is None
    assert ProblemScores.of_records([]) is None
