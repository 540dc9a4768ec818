"""The report of a study: what it says, and that it is the same bytes each time, from runs and from a summary."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_summaries import RATES, synthetic
from made_summaries import run as made_run
from study_files import stand_in, study

from cera.cli.main import main
from cera.studies import processes
from cera.studies.definition import ReportOptions
from cera.studies.problem_scores import ProblemScores
from cera.studies.report import report_markdown, write_report
from cera.studies.report_figure import figure
from cera.studies.report_tables import latex, notes, tables
from cera.studies.selection import t_interval
from cera.studies.summary import Summary
from cera.studies.two_way_bootstrap import two_way_bootstrap

AXES = {
    "adapter": {"lora": "lora.yaml", "cera": "cera.yaml"},
    "learning_rate": {"by": "adapter", "values": {"lora": [0.003, 0.01, 0.03], "cera": [0.02, 0.03]}},
    "seed": [0, 1, 2],
}
FIELDS = {
    "axes": AXES,
    "select": {"axis": "learning_rate"},
    "report": {"reference": "lora", "paper": {"perplexity": {"cera": 3.81}}, "source": "Table 3"},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """A study that has ended: 15 runs of the stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "TRAIN", stand_in())
        loaded = study(tmp_path_factory.mktemp("study"), settings={"wait": 0}, **FIELDS)
        loaded.run(parallel=3)
    return loaded


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_report_is_the_same_bytes_each_time_and_from_the_summary_alone(finished, tmp_path, capsys) -> None:
    finished.report(tmp_path / "a")
    finished.report(tmp_path / "b")
    assert main(["study", "report", str(tmp_path / "a" / "summary.json"), f"--out={tmp_path / 'c'}"]) == 0
    first = files(tmp_path / "a")
    assert first == files(tmp_path / "b")
    summary = first.pop("summary.json")
    assert first == files(tmp_path / "c")
    assert summary == (finished.folder / "summary.json").read_bytes()
    names = ["differences.csv", "grid.csv", "methods.csv", "report.md", "report.png", "report.svg", "report.tex"]
    assert sorted(first) == [*names, "runs.csv"]
    assert str(tmp_path / "c" / "report.tex") in capsys.readouterr().out
    # a negative control: another number is another report
    changed = json.loads(summary)
    changed["runs"][0]["values"]["perplexity"] += 0.5
    (tmp_path / "summary.json").write_text(json.dumps(changed))
    write_report(Summary.read(tmp_path / "summary.json"), tmp_path / "d")
    differing = {name for name, content in files(tmp_path / "d").items() if content != first[name]}
    assert differing == {"grid.csv", "report.md", "report.png", "report.svg", "report.tex", "runs.csv"}


def test_numbers_by_hand(finished) -> None:
    """The stand-in's perplexity is 2 + 100 |rate - 0.01| + seed / 10."""
    methods, differences, grid = tables(finished.summary())
    lora, cera = methods.rows
    assert methods.headers == (
        "method",
        "parameters",
        "best learning_rate",
        "ended",
        "seeds",
        "perplexity",
        "perplexity (paper)",
    )
    assert lora == ("lora", "1,000", "lr0.01", "9 of 9", "3", "2.1 [1.852, 2.348]", "-")
    assert cera == ("cera", "1,000", "lr0.02 (edge)", "6 of 6", "3", "3.1 [2.852, 3.348]", "3.81")
    assert "Columns marked (paper) are the paper's: Table 3." in methods.title
    ((method, metric, value, seeds, problems, p, adjusted),) = differences.rows
    assert (method, metric, seeds, problems, p, adjusted) == ("cera", "perplexity", "3", "-", "< 0.001", "< 0.001")
    assert value.startswith("+1 [")
    assert grid.headers == ("method", "lr3e-3", "lr0.01", "lr0.02", "lr0.03")
    assert grid.rows == (("lora", "2.8", "2.1", "-", "4.1"), ("cera", "-", "-", "3.1", "4.1"))
    listed = notes(finished.summary())
    assert any("perplexity chooses the learning_rate and is reported, on the same rows" in note for note in listed)
    assert any("cera: its best learning_rate, lr0.02, is the lowest of its grid" in note for note in listed)
    assert not any(note.startswith("lora") for note in listed)
    assert not any("of the base" in note for note in listed)  # the stand-in does not measure it
    first, *others = finished.summary().runs
    summary = replace(finished.summary(), runs=(replace(first, base_perplexity=17.25), *others))
    assert any("17.25 (lora-lr3e-3-seed0)" in note for note in notes(summary))


def without(summary: Summary, name: str, state: str) -> Summary:
    """The summary with one run in another state."""
    runs = [replace(run, state=state, reason="loss is nan") if run.name == name else run for run in summary.runs]
    return replace(summary, runs=tuple(runs))


@pytest.mark.parametrize("state", ["diverged", "failed", "stopped"])
def test_a_run_without_a_result_counts_against_its_rate_and_is_shown(finished, state) -> None:
    """The rate would be the best one by its two other seeds."""
    summary = without(finished.summary(), "lora-lr0.01-seed2", state)
    methods, _, grid, missing = tables(summary)
    assert methods.rows[0][2:6] == ("lr3e-3 (edge)", "8 of 9", "3", "2.8 [2.552, 3.048]")
    assert grid.rows[0][2] == "2 of 3 runs"
    assert missing.rows == (("lora-lr0.01-seed2", state, "loss is nan"),)
    assert "lora: not chosen, as a run there has no result: lr0.01." in notes(summary)


def with_problems(summary: Summary, solved: dict[str, str]) -> Summary:
    """The summary with answers to four problems, by method: one character a seed and problem."""
    runs, numbers = [], dict.fromkeys(solved, 0)
    for run in summary.runs:
        digits = solved[run.method][4 * (numbers[run.method] % 3) :][:4]
        numbers[run.method] += 1
        values = {"my_task_pass@1": digits.count("1") / 4, "perplexity": run.values["perplexity"]}
        # of another evaluation, too, whose name is the beginning of this one's
        problems = {"my": ProblemScores("other", 1, "01"), "my_task": ProblemScores("same", 1, digits)}
        runs.append(replace(run, values=values, problems=problems))
    return replace(summary, runs=tuple(runs), report=ReportOptions(reference="lora"))


def test_accuracy_is_resampled_over_seeds_and_problems(finished, tmp_path) -> None:
    answers = {"lora": "110010001100", "cera": "111011001110"}
    summary = with_problems(finished.summary(), answers)
    summary.save(tmp_path / "summary.json")
    assert Summary.read(tmp_path / "summary.json") == summary
    methods, differences, *_ = tables(summary)
    lora, cera = (np.array(list(digits), float).reshape(3, 4) for digits in answers.values())
    expected = two_way_bootstrap(cera)
    assert methods.rows[1][-2:] == (f"0.6667 [{expected.low:.4g}, {expected.high:.4g}]", "3.1 [2.852, 3.348]")
    expected = two_way_bootstrap(cera - lora)
    row = differences.rows[0]
    assert row[:2] == ("cera", "my_task_pass@1")
    assert row[2:5] == (f"+0.25 [{expected.low:.4g}, {expected.high:.4g}]", "3", "4")
    # two of the four problems differ, both for the better: of the four draws of their signs, two are as extreme
    assert expected.p_value < 0.5
    assert float(row[5]) == 0.5
    assert differences.rows[1][4] == "-"
    for table in (methods, differences):
        assert "my_task_pass@1 (4 problems) are of 10,000 bootstrap resamples of seeds and problems" in table.title
        assert "Others are Student's over the seeds." in table.title


def test_without_all_answers_to_the_same_problems_intervals_are_students(finished) -> None:
    """What is not paired by problem is not compared as if it were."""
    summary = with_problems(finished.summary(), {"lora": "110010001100", "cera": "111011001110"})
    first = [run for run in summary.runs if run.labels["seed"] == "seed0"]
    other = {run.name: {"my_task": ProblemScores("others", 1, run.problems["my_task"].counts)} for run in first}
    for problems in ({}, other):
        runs = [replace(run, problems=problems.get(run.name, {})) if run in first else run for run in summary.runs]
        methods, differences, *_ = tables(replace(summary, runs=tuple(runs)))
        low, high = t_interval([0.75, 0.5, 0.75])
        assert methods.rows[1][-2] == f"0.6667 [{low:.4g}, {high:.4g}]"
        assert differences.rows[0][4] == "-"
        assert "Intervals are Student's over the seeds." in methods.title


def test_a_method_without_any_result_stays_in_the_tables(finished) -> None:
    summary = finished.summary()
    for name in ("cera-lr0.02-seed0", "cera-lr0.03-seed0"):
        summary = without(summary, name, "failed")
    methods = tables(summary)[0]
    assert methods.rows[1] == ("cera", "1,000", "-", "4 of 6", "0", "-", "3.81")
    assert "cera: at every learning_rate a run diverged, failed, was stopped or has not ended." in notes(summary)
    assert "| cera |" in report_markdown(summary)


def test_latex_is_booktabs_and_escaped(finished) -> None:
    text = latex(tables(finished.summary())[0])
    assert r"\toprule" in text
    assert r"best learning\_rate" in text
    assert text.count(r"\\") == 3
    assert text.count("&") == 3 * 6


def test_runs_csv_has_every_run_with_its_values(finished, tmp_path) -> None:
    finished.report(tmp_path)
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    assert (rows[0]["run"], rows[0]["seed"], float(rows[0]["perplexity"])) == ("lora-lr3e-3-seed0", "seed0", 2.7)


def test_a_study_without_selection_is_drawn_by_method(finished, tmp_path) -> None:
    summary = replace(finished.summary(), selection=None, report=ReportOptions())
    assert {path.name for path in write_report(summary, tmp_path)} >= {"report.png", "methods.csv"}
    empty = replace(summary, runs=tuple(replace(run, values={}) for run in summary.runs))
    assert "report.png" not in {path.name for path in write_report(empty, tmp_path)}


def test_one_mean_far_above_all_others_does_not_flatten_the_figure() -> None:
    losses = {"a": [2.0, 1.9, 1.8], "b": [2.1, 1.9, 90.0]}
    runs = [
        made_run(method, rate, 0, {"perplexity": loss})
        for method, by_rate in losses.items()
        for rate, loss in zip(RATES, by_rate, strict=True)
    ]
    (panel,) = figure(synthetic(runs)).axes
    low, high = panel.get_ylim()
    assert low < 1.8
    assert 2.1 < high < 5
    assert [line.get_xdata()[0] for line in panel.get_lines() if line.get_marker() == "^"] == [RATES[2]]
    (panel,) = figure(synthetic(runs[:-1])).axes
    assert not [line for line in panel.get_lines() if line.get_marker() == "^"]
    assert panel.get_ylim()[1] > 2.1


def test_a_file_that_is_no_summary_is_one_line(tmp_path, capsys) -> None:
    (tmp_path / "summary.json").write_text('{"study": "x"}')
    assert main(["study", "report", str(tmp_path / "summary.json")]) == 2
    assert "is no summary of a study" in capsys.readouterr().err
