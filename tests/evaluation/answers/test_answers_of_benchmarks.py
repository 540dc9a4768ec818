import json
import random
from pathlib import Path

import pytest
from conftest import DATA

from cera.evaluation.answers import extract, is_correct
from cera.evaluation.answers.notation import normalize
from cera.evaluation.answers.numbers import number
from cera.evaluation.answers.units import is_quantity


@pytest.fixture(scope="module")
def math() -> Path:
    if not (DATA / "math").is_dir():
        pytest.skip(f"no MATH files in {DATA}/math; set CERA_DATA_DIR to the folder that holds math/")
    return DATA / "math"


def column(file: Path, name: str) -> list[str]:
    return [json.loads(line)[name] for line in file.open(encoding="utf-8")]


def test_every_solution_of_math500_equals_itself_by_box_and_by_phrase(math):
    solutions = column(math / "math500.jsonl", "answer")
    assert len(solutions) == 500
    for solution in solutions:
        extraction = extract(solution)
        assert extraction is not None
        assert extraction.extracted_by == "boxed"
        assert is_correct(solution, solution)
        phrase = "The answer is: " + solution.rpartition("The answer is: ")[2]
        assert is_correct(phrase, solution), phrase
        assert is_correct(solution, phrase), phrase


def test_every_answer_of_gsm8k_equals_itself_with_and_without_its_solution(gsm8k):
    for solution in column(gsm8k / "test.jsonl", "answer"):
        extraction = extract(solution)
        assert extraction is not None
        assert extraction.extracted_by == "hashes"
        assert is_correct(solution, solution)
        assert is_correct(extraction.answer.replace(",", ""), solution)
        assert not is_correct(extraction.answer + "1", solution)


def test_answers_of_math_equal_themselves_however_they_are_set(math):
    golds = random.Random(0).sample([a for a in column(math / "problems_7500.jsonl", "answer") if a], 400)
    for gold in golds:
        assert is_correct(gold, gold)
        assert is_correct(rf"So it is \[ \boxed{{ {gold} }} \]", gold), gold
        if "$" not in gold:
            assert is_correct(f"The answer is ${gold}$.", gold), gold


def test_different_answers_of_math_are_different(math):
    """Of 2,900 pairs of all answers, those that were judged equal were looked at: they are of one value or unit."""
    golds = {normalize(a) for a in column(math / "problems_7500.jsonl", "answer")} - {""}
    expressions = sorted(a for a in golds if number(a) is None and not is_quantity(a))
    rng = random.Random(1)
    equal = [pair for pair in (rng.sample(expressions, 2) for _ in range(300)) if is_correct(*pair)]
    assert not equal
