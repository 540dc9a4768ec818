"""The benchmarks as problems: from files of each form, and what is refused."""

import json

import pytest
from conftest import DATA

import cera.data
from cera.data import DataError
from cera.evaluation import command, compare_command
from cera.evaluation.records import read
from cera.evaluation.tasks import GSM8K, MATH, MATH500, Chats, GSMSymbolic, Problem, Score


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
    document = {"question": "p", "answer": "so. The answer is: 3"}
    assert MATH500(write(tmp_path / "b.jsonl", [document])).problems() == [Problem("math/0", "p", document["answer"])]


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
    task = Chats(dataset=cera.data.ReasoningGymWordProblems(size=20, problem_seed=1), limit=5)
    task.check()
    problems = task.problems()
    assert len(problems) == 5
    assert all("####" in problem.gold and "####" not in problem.question for problem in problems)


def test_a_number_in_a_row_stands_for_its_text(tmp_path):
    assert GSM8K(write(tmp_path / "a.jsonl", [{"question": "q", "answer": 7}])).problems()[0].gold == "7"
    zero = {"problem": "p", "answer": 0, "solution": r"so \boxed{1}", "level": 2}
    assert MATH(write(tmp_path / "b.jsonl", [zero])).problems() == [Problem("math/0", "p", "0", {"level": "2"})]


@pytest.mark.parametrize(
    ("task", "row", "named"),
    [
        (GSM8K, {"question": ["q"], "answer": "1"}, r"question must be text, got \['q'\]"),
        (GSM8K, {"question": "q", "answer": True}, "answer must be text, got True"),
        (GSM8K, {"question": "q", "answer": 1e999}, "answer must be text, got inf"),
        (GSM8K, {"question": "q\ud800", "answer": "1"}, "surrogates not allowed"),
        (MATH, {"problem": "p", "answer": "1", "level": [5]}, "level must be text"),
        (MATH, {"problem": "p", "answer": "1", "unique_id": {}}, "unique_id must be text"),
        (MATH500, {"question": "q", "answer": None}, "row 1 is malformed"),
    ],
)
def test_a_row_of_other_types_is_one_error(task, row, named, tmp_path):
    file = write(tmp_path / "a.jsonl", [{"question": "q", "problem": "p", "answer": "1"}, row])
    with pytest.raises(DataError, match=named) as raised:
        task(file).problems()
    assert "\n" not in str(raised.value)


def test_a_task_without_problems_and_a_problem_that_is_no_text_are_errors(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="GSM8K has no problems"):
        GSM8K(str(tmp_path / "a.jsonl")).problems()
    task = GSM8K(write(tmp_path / "b.jsonl", [{"question": "q", "answer": "1"}]))
    task.problem = lambda row, number: Problem("k", "q", 1)
    with pytest.raises(DataError, match="gold of the problem 'k' must be a string, got 1"):
        task.problems()


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


# A task from outside the package

MULTIPLE_CHOICE = '''
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from cera.evaluation.tasks import Problem, RowsTask, Score


@dataclass
class MultipleChoice(RowsTask):
    """Questions with lettered options; the first capital letter of the answer is the choice."""

    columns: ClassVar = (("question", "options", "correct"),)
    credit: float | None = None

    def problem(self, row: dict[str, Any], number: int) -> Problem:
        letters = "ABCDEFGH"[: len(row["options"])]
        options = "\\n".join(f"{letter}: {option}" for letter, option in zip(letters, row["options"]))
        gold = letters[row["correct"]]
        return Problem(f"choice/{number}", f"{row['question']}\\n{options}", gold, details={"letters": letters})

    def score(self, text: str, problem: Problem) -> Score:
        choice = re.search(f"[{problem.details['letters']}]", text)
        correct = choice is not None and choice[0] == problem.gold
        return Score(
            correct if self.credit is None else self.credit,
            choice[0] if choice else None,
            "first letter" if choice else None,
        )

    def summarize(self, records):
        share = sum(record["answers"][0] is not None for record in records) / len(records)
        return {"chosen": {"value": share, "low": share, "high": share}}
'''


def evaluate_choice(tmp_path, tiny_llama, monkeypatch, *more):
    """Run `cera evaluate` on four questions of a task that lies in a file of its own; returns status and folder."""
    (tmp_path / "choice_task.py").write_text(MULTIPLE_CHOICE)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [{"question": f"Which is {i}?", "options": ["one", "two", "three"], "correct": i % 3} for i in range(4)]
    config = tmp_path / "eval_choice.yaml"
    task = {"class_path": "choice_task.MultipleChoice", "init_args": {"data_files": write(tmp_path / "q.jsonl", rows)}}
    config.write_text(json.dumps({"evaluation": {"name": "choice", "task": task}}))
    arguments = [f"--config={config}", f"--base={tiny_llama}", f"--out={tmp_path}", "--dtype=float32", *more]
    status = command.main([*arguments, "--evaluation.sampling.max_new_tokens=12"])
    return status, tmp_path / "eval" / "choice"


def test_a_task_of_another_kind_from_outside_the_package(tiny_llama, tmp_path, monkeypatch, capsys):
    status, folder = evaluate_choice(tmp_path, tiny_llama, monkeypatch)
    assert status == 0
    records = read(folder / "records.jsonl")
    assert [record["key"] for record in records] == [f"choice/{i}" for i in range(4)]
    for record in records:
        letters = [letter for letter in record["samples"][0] if letter in "ABC"]
        assert record["answers"] == [letters[0] if letters else None]
        assert record["how"] == ["first letter" if letters else None]
        assert record["correct"] == [letters[:1] == [record["gold"]]]
    report = json.loads((folder / "eval.json").read_text())
    right = sum(record["correct"][0] for record in records)
    assert report["metrics"]["pass@1"]["value"] == right / 4
    assert report["summary"]["chosen"]["value"] == sum(r["answers"] != [None] for r in records) / 4
    assert "chosen" in capsys.readouterr().out

    # resumed: the two problems that are left are asked, and the others stay as they are
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[:2]))
    (folder / "eval.json").unlink()
    assert evaluate_choice(tmp_path, tiny_llama, monkeypatch)[0] == 0
    again = read(folder / "records.jsonl")
    assert again[:2] == records[:2]
    assert [record["samples"] for record in again] == [record["samples"] for record in records]
    assert json.loads((folder / "eval.json").read_text())["metrics"] == report["metrics"]

    status, _ = evaluate_choice(tmp_path, tiny_llama, monkeypatch, "--evaluation.task.init_args.credit=0.5")
    assert status == 2
    assert "task.credit: None there, 0.5 here" in capsys.readouterr().err


def test_partial_credit_is_reported_as_the_mean_score(tiny_llama, tmp_path, monkeypatch, capsys):
    credit = "--evaluation.task.init_args.credit=0.25"
    status, folder = evaluate_choice(tmp_path, tiny_llama, monkeypatch, credit)
    assert status == 0
    report = json.loads((folder / "eval.json").read_text())
    assert report["metrics"] == {"score": {"value": 0.25, "low": 0.25, "high": 0.25}}
    capsys.readouterr()
    assert compare_command.main([str(tmp_path), str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "score" in printed
    assert "McNemar" not in printed


@pytest.mark.parametrize("correct", [1.5, -0.1, "yes", None, float("nan")])
def test_a_score_is_a_verdict_or_a_credit(correct):
    with pytest.raises(ValueError, match=r"Score\.correct must be"):
        Score(correct)
