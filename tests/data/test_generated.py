"""Generated problems are right, distinct, the same each time, and apart from what evaluations use."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cera.data import (
    ChainedArithmetic,
    DataError,
    GeneratedProblems,
    LogisticMapSolutions,
    RandomFacts,
    ReasoningGym,
    ReasoningGymWordProblems,
)
from cera.evaluation.tasks import LogisticMap

KINDS = [
    ChainedArithmetic(size=50),
    LogisticMapSolutions(size=50, steps=3),
    RandomFacts(size=50),
    ReasoningGym(size=50, family="gcd"),
    ReasoningGymWordProblems(size=50),
]


@pytest.mark.parametrize("dataset", KINDS, ids=lambda dataset: type(dataset).__name__)
def test_problems_are_distinct_and_the_same_each_time(dataset: GeneratedProblems) -> None:
    rows = list(dataset.load())
    assert len(rows) == len({row["question"] for row in rows}) == 50
    assert rows == list(dataset.load())
    assert rows != list(type(dataset)(**{**vars(dataset), "problem_seed": 1}).load())


@pytest.mark.parametrize("dataset", KINDS, ids=lambda dataset: type(dataset).__name__)
def test_problems_behind_a_training_set_are_others(dataset: GeneratedProblems) -> None:
    behind = type(dataset)(**{**vars(dataset), "size": 20, "skip": 50})
    trained = {row["question"] for row in dataset.load()}
    assert trained.isdisjoint(row["question"] for row in behind.load())


@given(steps=st.integers(1, 8), digits=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_steps_of_chained_arithmetic_are_right(steps: int, digits: int, seed: int) -> None:
    for row in ChainedArithmetic(size=2, problem_seed=seed, steps=steps, digits=digits).load():
        expression = row["question"].removesuffix(" = ?")
        *lines, last = row["answer"].split("\n")
        assert len(lines) == steps == len(re.findall(r" [+-] ", expression))
        assert all(eval(left) == int(right) for left, right in (line.split(" = ") for line in lines))
        assert last == f"#### {eval(expression)}"


def test_a_logistic_map_for_training_leaves_the_benchmark_out() -> None:
    evaluated = {problem.question for problem in LogisticMap(size=1000, steps=4, decimals=2).problems()}
    training = LogisticMapSolutions(size=12000, steps=4, decimals=2)
    assert evaluated.isdisjoint(row["question"] for row in training.load())
    validation = LogisticMapSolutions(size=1000, steps=4, decimals=2, of_benchmark=True)
    assert evaluated == {row["question"] for row in validation.load()}


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (ChainedArithmetic(steps=0), "ChainedArithmetic.steps must be at least 1, got 0."),
        (ChainedArithmetic(size=0), "ChainedArithmetic.size must be a positive integer, got 0."),
        (RandomFacts(skip=-1), "RandomFacts.skip must be zero or more, got -1."),
        (ReasoningGym(family="nope"), "ReasoningGym: family='nope'"),
        (ReasoningGym(family="gcd", options={"min_x": 2}), "unexpected keyword argument 'min_x'"),
        (LogisticMapSolutions(decimals=1), "LogisticMapSolutions: decimals must be in [2, 12], got 1."),
        (LogisticMapSolutions(held_out=10**6), "must be in [1, 13741], got 1000000."),
    ],
    ids=str,
)
def test_wrong_settings_are_named(dataset: GeneratedProblems, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        dataset.check()


def test_a_generator_that_ends_too_early_is_an_error() -> None:
    with pytest.raises(DataError, match=r"skip \+ size is 400, but the generator has only \d+ problems"):
        ChainedArithmetic(size=400, steps=1, digits=1).load()
