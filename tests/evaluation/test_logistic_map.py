import json
import time

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from cera.data import DataError
from cera.evaluation import command
from cera.evaluation.records import read
from cera.evaluation.tasks.logistic_map import (
    LogisticMap,
    LogisticMapProblem,
    grid_problems,
    parse,
    random_problems,
    score,
    summarize,
    tolerances,
    training_rows,
    trajectory,
)
from cera.evaluation.tasks.logistic_map.figure import trajectory_figure

PROBLEM = LogisticMapProblem(3.5, 0.4, steps=8)
RIGHT = [0.84, 0.4704, 0.8719, 0.3909, 0.8333, 0.4862, 0.8743, 0.3846]
PROBLEMS = st.builds(
    LogisticMapProblem, st.floats(2.5, 4), st.floats(0.01, 0.99), st.integers(1, 30), st.integers(2, 8)
)


def score_values(values, problem=PROBLEM):
    return score(values, problem.r, problem.x0, problem.decimals, problem.steps)


def test_the_truth_is_the_map():
    assert trajectory(3.5, 0.4, 2) == pytest.approx([0.84, 3.5 * 0.84 * 0.16])
    assert trajectory(2.5, 0.6, 3) == pytest.approx([0.6] * 3)


@settings(max_examples=150, deadline=None)
@given(PROBLEMS)
def test_honest_rounding_is_right_consistent_and_no_collapse(problem):
    values = parse(problem.answer)
    result = score_values(values, problem)
    assert len(values) == problem.steps
    assert result.all_right
    assert result.consistent == problem.steps
    assert not result.collapsed


@settings(max_examples=50, deadline=None)
@given(PROBLEMS)
def test_the_rounded_truth_is_right_and_consistent(problem):
    truth = [round(x, problem.decimals) for x in trajectory(problem.r, problem.x0, problem.steps)]
    result = score_values(truth, problem)
    assert result.all_right
    assert result.consistent == problem.steps
    assert not result.collapsed


def test_a_step_is_inconsistent_as_soon_as_rounding_does_not_explain_it():
    problem = LogisticMapProblem(3.9, 0.01)  # |f'| is at most 3.9: a rounding error of 0.00005 becomes 0.000195
    values = parse(problem.answer)
    for error, consistent in ((1.9e-4, 2), (5e-4, 1)):
        wrong = [values[0], round(values[1] + error, 4)]
        assert score_values(wrong, problem).consistent == consistent
    assert score_values([values[0] + 1e-4], problem).consistent == 0  # x_0 is not rounded


def test_tolerances_start_at_half_a_unit_and_grow_with_chaos():
    bounds = tolerances(4.0, 0.3, 30, 4)
    assert bounds[0] == 5e-5
    assert bounds[-1] == 1
    assert max(tolerances(2.5, 0.6, 30, 4)) < 1.1e-4  # |f'| = 0.5: errors die away
    assert 1 < score_values([], LogisticMapProblem(4.0, 0.3, 30)).judged < 30


def test_a_perfect_answer_has_all_steps():
    result = score_values(RIGHT)
    assert (result.correct, result.judged, result.consistent, result.collapsed) == (8, 8, 8, False)


def test_one_wrong_digit_ends_what_is_right():
    result = score_values([*RIGHT[:2], 0.8819, *RIGHT[3:]])
    assert (result.correct, result.consistent) == (2, 6)  # neither the wrong step nor the one after it follows
    carried = [*RIGHT[:2], 0.8819]
    while len(carried) < 8:
        carried.append(round(3.5 * carried[-1] * (1 - carried[-1]), 4))
    assert (score_values(carried).correct, score_values(carried).consistent) == (2, 7)


def test_missing_steps_are_not_right_and_further_ones_do_not_count():
    assert (score_values(RIGHT[:3]).correct, score_values(RIGHT[:3]).all_right) == (3, False)
    assert score_values([*RIGHT, 0.1, 0.1, 0.1]) == score_values(RIGHT)


def test_a_collapse_is_a_value_that_only_the_model_repeats():
    assert score_values([0.84, 0.4704, 0.4704, 0.4704]).collapsed
    assert not score_values([0.84, 0.4704, 0.4704]).collapsed
    assert not score_values([0.6] * 8, LogisticMapProblem(2.5, 0.6, 8)).collapsed  # a fixed point
    assert score_values([0.6] * 8, LogisticMapProblem(2.5, 0.6, 8)).all_right
    two = LogisticMapProblem(3.2, 0.5, 40)  # a cycle of 0.7995 and 0.5130
    assert not score_values(parse(two.answer), two).collapsed
    assert score_values([*parse(two.answer)[:30], *[0.7995] * 10], two).collapsed


@pytest.mark.parametrize(
    "text",
    [
        "x_1 = 0.84\nx_2 = 0.4704",
        "x1: 0.84\nx2: 0.4704",
        "Step 1: x = 3.5 * 0.4 * 0.6 = 0.84\nStep 2: x = 0.4704.",
        r"$x_{1} = 0.84$, and then \(x_{2} \approx 0.4704\)",
        r"\[ x_{1} = 3.5 \times 0.4 \times 0.6 = \boxed{0.84} \] \n" + "\n" + r"x_{2} &= 0.4704 \\",
        "x_0 = 0.4\n- **x_1** = 3.5 * 0.4 * (1 - 0.4) = **0.84**\n- x_2 = 3.5 * x_1 * (1 - x_1) = 0.4704 (rounded)",
        "x_1 = 3.5 * 0.4 * (1 - 0.4)\n    = 3.5 * 0.24\n    = 0.84\nx_2 = 0.4704\n\nSummary: x_1 = 0.9",
        "x₁ = 0.84; x₂ ≈ .4704",
        "Step 1: Compute 1 - 0.4 = 0.6\nx_1 = 0.84\nStep 2: x_2 = 0.4704\nx_4 = 0.3909",
        "x_1 = 0.84 and x_2 = 0.4704",
        "$x_1=0.84$ $x_2=0.4704$",
        "x_1 = 0.84 x_2 = 0.4704",
        "1. 0.84\n2. 0.4704",
        "1) 3.5 * 0.4 * 0.6 = 0.84\n2) 0.4704",
        "**1.** 0.84\n**2.** 0.4704",
        "1: 0.84\n2: 0.4704",
        "(1) 0.84\n(2) 0.4704",
        "1. x_0 = 0.4\n2. x_1 = 0.84\n3. x_2 = 0.4704",
        "| n | x_n |\n|---|---|\n| 0 | 0.4 |\n| 1 | 0.84 |\n| 2 | 0.4704 |",
        "| Step | Work | Value |\n|:-:|---|---|\n| 1 | 3.5 * 0.4 * 0.6 | 0.84 |\n| 2 | 3.5 * 0.84 * 0.16 | 0.4704 |",
        "| n | x_n | x_{n+1} |\n|---|---|---|\n| 0 | 0.4 | 0.84 |\n| 1 | 0.84 | 0.4704 |",
        "| Step | x_n | x_{n+1} |\n|---|---|---|\n| 1 | 0.4 | 0.84 |\n| 2 | 0.84 | 0.4704 |",
        "| n | x_n | 1 - x_n |\n|---|---|---|\n| 1 | 0.84 | 0.16 |\n| 2 | 0.4704 | 0.5296 |",
        "| x_1 | x_2 |\n|---|---|\n| 0.84 | 0.4704 |",
        "| n | 1 | 2 |\n|---|---|---|\n| x_n | 0.84 | 0.4704 |",
        "x_1 | 0.84\nx_2 | 0.4704",
        "| x_1 | 0.84 |\n| x_2 | 0.4704 |",
        r"$x_1$ & 0.84 \\" "\n" r"$x_2$ & 0.4704 \\",
        "n\tx_n\n1\t0.84\n2\t0.4704",
        "x[1] = 0.84\nx[2] = 0.4704",
        "x(1) = 0.84, x(2) = 0.4704",
        "x_1 -> 0.84\nx_2 -> 0.4704",
        "x_1 → 0.84, x_2 → 0.4704",
        r"$x_1 \to 0.84 \to x_2 = 0.4704$",
        "x_0 = 0.4 → x_1 = 0.84 → x_2 = 0.4704",
        "x_1 = 0.84 => x_2 = 0.4704",
        "0.4 → 0.84 → 0.4704",
        "0.4 -> 0.84 -> 0.4704",
        "x: 0.4 → 0.84 → 0.4704.",
        "x_1 = 3.5 * 0.4 * 0.6 → 0.84\nx_2 = 0.4704",
        "x_1 = 0.84 (r = 3.5)\nx_2 = 0.4704 where r = 3.5",
        "x_1 is 0.84 and x_2 is approximately 0.4704",
        "x_1 = 0.84: done\nx_2 = 3.5*0.84*0.16 = 0.4704: done",
        "n = 1: 0.84\nn = 2: 0.4704",
        "Iteration 1: x = 0.84\nIteration 2: x = 0.4704",
        "x_1 = f(x_0) = 0.84\nx_2 = f(x_1) = 0.4704",
        "1. 3.5 * 0.4 = 1.4\n2. 1 - 0.4 = 0.6\n3. 1.4 * 0.6 = 0.84\nSo x_1 = 0.84 and then x_2 = 0.4704",
        "x_1 = 0.84, as said. All:\n| 1 | 0.84 |\n| 2 | 0.4704 |",
        "(x_1 = 0.84, x_2 = 0.4704)",
        "x_1 = 3.5 x_0 - 3.5 x_0^2 = 0.84\nr x_1 = 2.94\nx_2 = 0.4704",
        "* x_1 = 0.84\n* x_2 = 0.4704",
        "`x_1 = 0.84`\n`x_2 = 0.4704`",
        "x_1=0.84;x_2=0.4704",
        "x_{1}=0.84,x_{2}=0.4704",
        "X_1 = 0.84\nX_2 = 0.4704",
        "x 1 = 0.84\nx 2 = 0.4704",
        "x_1 ≈ 0.8400 ; x_2 ≈ 0.4704",
        "The value of x_1 is $0.84$. The value of x_2 is $0.4704$.",
    ],
)
def test_steps_are_read_as_models_write_them(text):
    assert parse(text, x0=0.4) == [0.84, 0.4704]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("x_1 = 3.5 * 0.4, x_2 = 0.4704", []),  # no step gets the value of another one
        ("x_1 = 0.84 and x_2 = 3.5 * 0.84 and x_3 = 0.8719", [0.84]),
        ("3.5 * x_1 * (1 - x_1) = 0.4704", []),
        ("f(x_1) = 0.4704 and r x_1 = 2.94", []),
        ("1. x_1 = 0.84\n2. x_3 = 0.8719", [0.84]),
        ("| 1 | 0.84 |\n| 3 | 0.8719 |", [0.84]),
        ("Step 1: 0.6\nStep 2: 1.4\nThen x_1 = 0.84", [0.84]),
        ("0.84 → 0.4704 → 0.8719", [0.84, 0.4704, 0.8719]),  # not from x_0 = 0.4 on
        ("0.4 → 0.84", []),
    ],
)
def test_each_step_has_its_own_value(text, values):
    assert parse(text, x0=0.4) == values


@pytest.mark.parametrize(
    "text",
    [
        "", "I cannot.", "x_2 = 0.5", "x_1 = 3.5 * 0.4", "x_{n+1} = r x_n (1 - x_n)", "x^2 = 0.16", "x_10 = 0.3",
        "Step 1: we begin", "1. First we think\n2. Then we act", "10. 0.4", "| a | b |\n|---|---|\n| c | d |",
    ],
)  # fmt: skip
def test_what_states_no_first_step_has_no_steps(text):
    assert parse(text) == []


PIECES = [
    "x_1 ", "x_1 = ", "x_1 = 3.5 * ", "step 1 $", "= ", "9", "(", "x_1 = 0.5, ", "\n=1", "-", "->", "x_1 → ", "|1",
    "1|0\n", "\n1. 0.5", "$ ", "x_1 ))", "0.5 (", "5)", "1\t", "{\\boxed{", "x_1|",
]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_a_long_text_is_read_at_once(piece):
    for start, end in (("x_1 = ", ""), ("", "x"), ("|x_1" * 20_000 + "\n", "")):
        begin = time.process_time()
        parse(start + piece * (100_000 // len(piece)) + end)
        assert time.process_time() - begin < 3


def test_problems_are_a_grid_or_seeded():
    assert [(p.r, p.x0) for p in grid_problems([2.5, 3.5], [0.1, 0.4])] == [
        (2.5, 0.1),
        (2.5, 0.4),
        (3.5, 0.1),
        (3.5, 0.4),
    ]
    drawn = random_problems(200, seed=1)
    assert drawn == random_problems(200, seed=1) != random_problems(200, seed=2)
    assert len(set(drawn)) == 200
    row = training_rows([PROBLEM])[0]
    assert "r = 3.5 and x_0 = 0.4" in row["question"]
    assert row["answer"].startswith("x_1 = 3.5 * 0.4 * (1 - 0.4) = 0.8400\nx_2 = 3.5 * 0.8400 * ")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: LogisticMapProblem(4.1, 0.4), "r must be .* 4.1"),
        (lambda: LogisticMapProblem(3.5, 1.0), "x0 must be .* 1.0"),
        (lambda: LogisticMapProblem(3.5, 0.4, steps=0), "steps must be .* 0"),
        (lambda: LogisticMapProblem(3.5, 0.4, steps=10**9), "steps must be .* 1000000000"),
        (lambda: LogisticMapProblem(3.5, 0.4, decimals=1), "decimals must be .* 1"),
        (lambda: random_problems(0), "number of problems .* 0"),
        (lambda: summarize([]), "at least one score"),
        (lambda: trajectory_figure([]), "at least one answer"),
    ],
)
def test_what_cannot_be_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_the_summary_is_the_means():
    rates = summarize(
        [[score_values(RIGHT)], [score_values(RIGHT[:4])], [score_values([0.84, 0.4704, 0.4704, 0.4704])]]
    )
    assert rates["steps_correct"]["value"] == pytest.approx((8 + 4 + 2) / 3)
    assert rates["all_right"]["value"] == rates["collapse"]["value"] == pytest.approx(1 / 3)
    assert rates["consistent"]["value"] == pytest.approx((8 + 4 + 2) / 24)
    assert all(rate["low"] <= rate["value"] <= rate["high"] for rate in rates.values())


def test_the_samples_of_one_problem_are_averaged():
    rates = summarize([[score_values(RIGHT), score_values(RIGHT[:4])], [score_values(RIGHT), score_values(RIGHT)]])
    assert rates["steps_correct"]["value"] == pytest.approx((6 + 8) / 2)
    assert rates["all_right"]["value"] == pytest.approx(3 / 4)


def test_a_panel_for_each_problem_marks_a_collapse():
    made = trajectory_figure([(PROBLEM, RIGHT), (PROBLEM, [0.84, 0.4704, 0.4704, 0.4704])])
    first, second = made.axes[:2]
    assert list(first.lines[1].get_ydata()) == RIGHT
    assert (len(first.patches), len(second.patches)) == (0, 1)


def test_the_task_scores_texts():
    task = LogisticMap(size=3, steps=4)
    problem, *_ = problems = task.problems()
    assert [p.key for p in problems] == [f"r={p.r}, x0={p.x0}" for p in random_problems(3, steps=4)]
    right = task.score(problem.gold, problem)
    assert (right.correct, right.extracted_by) == (True, "steps")
    wrong = task.score("x_1 = 0.5, and so on", problem)
    assert (wrong.correct, wrong.answer, wrong.details["score"]["stated"]) == (False, "0.5", 1)
    assert (task.score("no", problem).answer, task.score("no", problem).correct) == (None, False)
    assert [p.key for p in LogisticMap(r=[2.5, 3.5], x0=[0.1]).problems()] == ["r=2.5, x0=0.1", "r=3.5, x0=0.1"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"size": 0}, "number of problems .* 0"), ({"steps": 0}, "steps must be"), ({"r": [3.5]}, "both be given")],
)
def test_settings_that_cannot_be_are_named(settings, named):
    with pytest.raises(DataError, match=named):
        LogisticMap(**settings).check()


def test_the_command_asks_a_model(tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    settings = {"task.init_args.size": 3, "task.init_args.steps": 4, "sampling.max_new_tokens": 8, "batch_size": 2}
    options = ["--config=configs/eval_logistic_map.yaml", *(f"--evaluation.{k}={v}" for k, v in settings.items())]
    assert command.main([*options, f"--base={tiny_llama}", f"--out={tmp_path}"]) == 0
    assert "collapse" in capsys.readouterr().out
    folder = tmp_path / "eval" / "logistic_map"
    before = (folder / "records.jsonl").read_bytes()
    assert len(read(folder / "records.jsonl")) == 3
    assert json.loads((folder / "eval.json").read_text())["summary"]["correct"]["value"] == 0
    assert (folder / "trajectories.png").stat().st_size > 0
    monkeypatch.setattr(command, "_load_model", lambda *_: pytest.fail("nothing is left, so no model is needed"))
    assert command.main([*options, f"--base={tiny_llama}", f"--out={tmp_path}"]) == 0
    assert (folder / "records.jsonl").read_bytes() == before
    capsys.readouterr()
    assert command.main([*options, f"--adapter={tmp_path}"]) == 2
    assert "neither a run nor an adapter" in capsys.readouterr().err
