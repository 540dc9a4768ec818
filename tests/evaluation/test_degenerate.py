"""Loops and answers that are cut off: what counts as one, and the accuracy without them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cera.evaluation.degenerate import LONGEST_UNIT, REPETITIONS, SHORTEST_LOOP, degenerate_shares, ends_in_loop

TEXT = st.text("ab1 \n", max_size=60)


@given(TEXT, st.text("ab1 \n", min_size=1, max_size=LONGEST_UNIT), st.integers(0, LONGEST_UNIT))
def test_what_ends_in_repetitions_of_a_unit_is_a_loop(before: str, unit: str, part: int) -> None:
    times = max(REPETITIONS, -(-SHORTEST_LOOP // len(unit)))
    assert ends_in_loop(before + unit * times + unit[: part % len(unit)])


@given(st.text("ab", max_size=90) | st.builds(str.__mul__, st.text("ab", max_size=12), st.integers(3, 12)))
def test_it_agrees_with_building_each_loop_anew(text: str) -> None:
    lengths = {unit: max(REPETITIONS * unit, SHORTEST_LOOP) for unit in range(1, len(text) + 1)}
    tails = {unit: text[-length:] for unit, length in lengths.items() if length <= len(text)}
    assert ends_in_loop(text) == any((tail[:unit] * 90)[: len(tail)] == tail for unit, tail in tails.items())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The answer is 0.33333333",
        "x_1 = 3.1 * 0.65 * 0.35 = 0.71\nx_2 = 3.1 * 0.71 * 0.29 = 0.64\nx_3 = 3.1 * 0.64 * 0.36 = 0.71",
        "so it is 12. " * 10 + "The answer is 12.",  # repeated, but not to the end
    ],
)
def test_an_answer_is_no_loop(text: str) -> None:
    assert not ends_in_loop(text)


def test_shares_and_the_accuracy_without_them() -> None:
    loop = "1 + 1 = 2, so " * 9
    records = [
        {"samples": ["12", loop], "correct": [True, False], "finished": [True, False]},
        {"samples": ["13", "a long"], "correct": [False, True], "finished": [True, False]},
    ]
    assert degenerate_shares(records) == {"cut_off": 0.5, "loops": 0.25, "complete_accuracy": 0.5}
    only = [{"samples": [loop], "correct": [False], "finished": [True]}]
    assert degenerate_shares(only) == {"cut_off": 0.0, "loops": 1.0}
