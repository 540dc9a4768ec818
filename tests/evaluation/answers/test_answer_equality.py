import pytest
from equal_pairs import EQUAL
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unequal_pairs import UNEQUAL

from cera.evaluation.answers import is_correct


@pytest.mark.parametrize(("prediction", "gold"), EQUAL)
def test_equal(prediction, gold):
    assert is_correct(prediction, gold)
    assert is_correct(gold, prediction)


@pytest.mark.parametrize(("prediction", "gold"), UNEQUAL)
def test_unequal(prediction, gold):
    assert not is_correct(prediction, gold)
    assert not is_correct(gold, prediction)


def test_spelled_numbers_and_ratios_are_equal_as_they_are_written_only():
    """Less than one in a thousand of the answers of MATH and GSM8K is one of them: see scripts/answer_rules.py."""
    for answer in ("four", "twenty-one", "two-thirds", "3:5", "2:3:4"):
        assert is_correct(answer, answer)
        assert is_correct(answer.replace(":", " : "), rf"\text{{{answer}}}")
    for prediction, gold in (("4", r"\text{four}"), ("0.5", "one half"), ("3:5", "6:10"), ("3:4", r"\frac{3}{4}")):
        assert not is_correct(prediction, gold)
        assert not is_correct(gold, prediction)


def test_numbers_are_their_text_and_other_objects_no_answer():
    for value in (5, 5.0, -3, 1e22):
        assert is_correct(value, str(value))
        assert is_correct(str(value), value)
        assert not is_correct(value, value + 1e21)
    for other in (None, True, ["5"], b"5", float("nan"), float("inf"), 10**5000):
        assert not is_correct(other, "5")
        assert not is_correct("5", other)
        assert not is_correct(other, other)


@settings(max_examples=100, deadline=None)
@example((r"\{x \mid x>3\}", r"(3,\infty)"), r"\displaystyle %s")
@given(
    st.sampled_from(EQUAL + UNEQUAL),
    st.sampled_from(["$%s$", " %s ", r"\(%s\)", "%s\n", r"\displaystyle %s", "**%s**"]),
)
def test_setting_changes_no_verdict(pair, setting):
    prediction, gold = pair
    if not {"$", "*"} & {*prediction}:
        assert is_correct(setting.replace("%s", prediction), gold) == is_correct(prediction, gold)


@settings(max_examples=100, deadline=None)
@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000))
def test_numbers_are_compared_exactly(a, b):
    ways = [f"{a.numerator}/{a.denominator}", rf"\frac{{{a.numerator}}}{{{a.denominator}}}", f"x = {a}"]
    for way in ways:
        assert is_correct(way, str(a))
        assert is_correct(way, str(b)) == (a == b)
    assert is_correct(f"({a}, {b})", f"({b}, {a})") == (a == b)
    assert is_correct(f"{a}, {b}", f"{b}, {a}")
