import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cera.evaluation.answers import correctness, extract, is_correct, judge
from cera.evaluation.answers.extraction import candidates, is_prose, unmarked
from cera.evaluation.answers.notation import GROUPS, normalize, plain
from cera.evaluation.answers.number_words import in_digits
from cera.evaluation.answers.shortcuts import settled
from cera.evaluation.answers.units import is_numeric
from cera.evaluation.answers.written_numbers import last_number

HOSTILE = {
    "tower": "9^{9^{9^9}}",
    "tower as text": "9^9^9^9",
    "exponents": "10^{10^{10}}",
    "factorials": "(((9!)!)!)!",
    "factorial": "1000000!",
    "sum": r"\sum_{k=1}^{10^9} k^{k}",
    "power": "(x+y+z+w+1)^{200}",
    "parentheses": "(" * 900 + "5" + ")" * 900,
    "fractions": r"\frac{1}{" * 150 + "2" + "}" * 150,
    "list": ",".join(["9^{9^{9^9}}"] * 50),
    "braces": r"\boxed{" + "{" * 10_000 + "5" + "}" * 10_000 + "}",
    "boxes": r"\boxed{" * 10_000 + "-17" + "}" * 10_000,
    "braces around a number": "{" * 10_000 + "-17" + "}" * 10_000,
    "unclosed": r"\boxed{" * 10_000,
    "megabyte": "1" * 1_000_000,
    "megabyte of commas": "1," * 500_000,
    "megabyte of minus": "-" * 1_000_000 + "5x",
    "megabyte of phrases": "the answer is " * 70_000,
    "megabyte of hashes": "#### " * 200_000,
    "megabyte of dollars": "The answer is " + "$" * 1_000_000,
    "megabyte of boxes": r"\boxed " * 140_000,
    "megabyte of space": "answer" + " " * 1_000_000 + r"\boxed" + " " * 1_000_000,
    "megabyte of emphasis": "#### 5" + ".*" * 500_000,
    "megabyte of quotation marks": "#### " + "'\" " * 300_000 + "5",
    "megabyte of formulas": "#### " + "\\(" * 300_000 + "5" + "\\)" * 300_000,
    "no text": "\x00\ud800\uffff",
}


def load() -> float:
    """How much longer than its processor time something takes here and now; 1 if nothing else runs."""
    wall, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < 0.1:
        pass
    return max(1.0, (time.monotonic() - wall) / 0.1)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_takes_more_than_a_second(name):
    def seconds(prediction: str, gold: str) -> float:
        begin = time.monotonic()
        assert not is_correct(prediction, gold)
        return time.monotonic() - begin

    is_correct("x+1", "1+x")  # the process is there
    for pair in ((HOSTILE[name], "x^2-7"), ("-17", HOSTILE[name])):
        assert min(seconds(*pair) for _ in range(2)) < load()
    begin = time.monotonic()
    extract(HOSTILE[name])
    assert time.monotonic() - begin < load()
    assert is_correct("x+1", "1+x")


PIECES = [
    *" \n1a$\\\\{}()[],.^_=<|:½", "1 ", "a ", "\\\\", "\\text{", "\\text{a}", "\\frac", "\\sqrt", "1/2", "\\,",
    " 000", ",000", "and", "####", "#### a\n", "answer is ", "\\boxed{", "\\boxed ", "$x$ ", " (", "\\begin",
    "two ", "a hundred ",
]  # fmt: skip
SCANS = {
    **{rule.purpose: rule.apply for group in GROUPS for rule in group.rules},
    **{f.__name__: f for f in (extract, unmarked, is_prose, last_number, in_digits, normalize, is_numeric, plain)},
    "candidates": lambda text: list(candidates(text, numeric=True)),
}


@pytest.mark.parametrize("name", SCANS)
def test_every_scan_is_linear(name):
    """Quadratic time would be 0.3 seconds and more for 20,000 characters."""

    def seconds(text: str) -> float:
        begin = time.process_time()
        SCANS[name](text)
        return time.process_time() - begin

    for piece in PIECES:
        for start, end in (("1", ""), ("", "#")):
            text = start + piece * (20_000 // len(piece)) + end
            assert seconds(text) < 0.1 or min(seconds(text) for _ in range(3)) < 0.2, (start, piece, end)


def test_a_scan_that_is_not_linear_would_be_noticed():
    text = "1" + " " * 20_000 + "#"
    begin = time.process_time()
    re.sub(r"(?<=\d)\s*\^?\s*th", "", text)
    assert time.process_time() - begin > 0.2


COMMANDS = r"\boxed{ \frac \sqrt \left \text{ \pm \\ \{ \} \cup \in \begin{pmatrix} \end{pmatrix} \infty \circ \le"
MARKUP = st.sampled_from([*"{}()[],^_$ \n=<%&.:x3!/", *COMMANDS.split(), "17", "####", "answer is", " cm", " and "])


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40) | st.lists(MARKUP, max_size=12).map("".join), st.lists(MARKUP, max_size=8).map("".join))
def test_no_text_raises(prediction, gold):
    for text in (prediction, gold):
        extraction = extract(text)
        assert extraction is None or extraction.answer
    verdict = judge(prediction, gold)
    assert verdict.correct in (True, False)
    assert verdict.correct == is_correct(prediction, gold)
    assert verdict.answer or not verdict.correct
    assert settled(prediction, gold) in (None, correctness._sandbox.check(prediction, gold))
