"""The benchmarks as problems: from files of each form, and what is refused."""

import json

import pytest
from conftest import DATA

import cera.data
from cera.data import DataError
from cera.evaluation.tasks import GSM8K, MATH, MATH500, Chats, GSMSymbolic, Problem


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_gsm8k(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(3)])
    assert GSM8K(file).problems() == [Problem(f"gsm8k/{i}", f"q{i}", f"#### {i}") for i in range(3)]
    assert GSMSymbolic(file).problems()[2] == Problem("gsm_symbolic/2", "q2", "#### 2")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"problem": "p", "level": "Level 3", "type": "Algebra", "solution": r"so \boxed{3}"},
            Problem("math/0", "p", r"so \boxed{3}", {"level": "3", "subject": "Algebra"}),
        ),
        (
            {"problem": "p", "level": 5, "subject": "Geometry", "unique_id": "test/g/1.json", "answer": "3"},
            Problem("test/g/1.json", "p", "3", {"level": "5", "subject": "Geometry"}),
        ),
    ],
)
def test_math_in_both_forms(tmp_path, row, expected):
    assert MATH(write(tmp_path / "a.jsonl", [row])).problems() == [expected]


def test_math500_in_the_form_of_the_hub_and_of_a_question_file(tmp_path):
    hub = {"problem": "p", "solution": "long", "answer": "3", "subject": "Algebra", "level": 2, "unique_id": "u"}
    assert MATH500(write(tmp_path / "a.jsonl", [hub])).problems()[0].gold == "3"
    own = {"question": "p", "answer": "so. The answer is: 3"}
    assert MATH500(write(tmp_path / "b.jsonl", [own])).problems() == [Problem("math/0", "p", own["answer"])]


def test_the_real_files(gsm8k):
    assert len(GSM8K(str(gsm8k / "test.jsonl")).problems()) == 1319
    assert len(MATH500(str(DATA / "math" / "math500.jsonl")).problems()) == 500
    problems = MATH(str(DATA / "math" / "problems_7500.jsonl")).problems()
    assert len(problems) == 7500
    assert {p.groups["level"] for p in problems} >= {"1", "2", "3", "4", "5"}
    assert len({p.groups["subject"] for p in problems}) == 7


def test_limit_is_a_fixed_choice_in_order(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"question": f"q{i}", "answer": f"{i}"} for i in range(50)])
    chosen = [int(p.gold) for p in GSM8K(file, limit=10).problems()]
    assert chosen == sorted(chosen)
    assert chosen != list(range(10))
    assert chosen == [int(p.gold) for p in GSM8K(file, limit=10).problems()]
    assert set(chosen) < {int(p.gold) for p in GSM8K(file, limit=20).problems()}
    assert len(GSM8K(file, limit=100).problems()) == 50


def test_any_chat_dataset():
    task = Chats(dataset=cera.data.GSMSymbolic(size=20, problem_seed=1), limit=5)
    task.check()
    problems = task.problems()
    assert len(problems) == 5
    assert all("####" in problem.gold and "####" not in problem.question for problem in problems)


def test_nothing_is_skipped(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"question": "q", "answer": "1"}\n\nnot json\n')
    with pytest.raises(DataError, match="row 2 is malformed"):
        GSM8K(str(file)).problems()
    same = {"problem": "p", "answer": "3", "unique_id": "u"}
    with pytest.raises(DataError, match="the same id"):
        MATH(write(tmp_path / "b.jsonl", [same, same])).problems()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (GSM8K(limit=0), "task.limit must be at least 1, got 0"),
        (GSM8K("nowhere.jsonl"), "no such file: nowhere.jsonl"),
        (Chats(), "needs data_files"),
        (Chats("a.jsonl"), "to its dataset"),
    ],
)
def test_mistakes_are_named_before_anything_is_read(task, message):
    with pytest.raises(DataError, match=message):
        task.check()
