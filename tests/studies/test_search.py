"""A search of each method's best value with some of the seeds: which runs it wants, and what is reported of them."""

import re
from dataclasses import replace

import pytest
from made_summaries import run, synthetic
from study_files import stand_in, study

from cera.studies import processes
from cera.studies.axes import StudyError
from cera.studies.definition import Selection
from cera.studies.report import report_markdown
from cera.studies.state import seconds_left
from cera.studies.study_command import main
from cera.studies.summarize import unwanted_runs
from cera.studies.summary import Summary

AXES = {
    "adapter": {"lora": "lora.yaml", "cera": "cera.yaml"},
    "learning_rate": {
        "by": "adapter",
        "values": {"lora": ["1e-2", "3e-2", "1e-1"], "cera": ["3e-2", "2e-2"]},
    },
    "seed": [0, 1, 2],
}
SELECT = {"axis": "learning_rate", "search_seeds": [1]}
SEARCH = {"lora-lr0.01-seed1", "lora-lr0.03-seed1", "lora-lr0.1-seed1", "cera-lr0.03-seed1", "cera-lr0.02-seed1"}
CHOSEN = {"lora-lr0.01-seed0", "lora-lr0.01-seed2", "cera-lr0.02-seed0", "cera-lr0.02-seed2"}


@pytest.fixture(autouse=True)
def trainer(monkeypatch):
    monkeypatch.setattr(processes, "TRAIN", stand_in())


def names(loaded, *states: str) -> set[str]:
    return {state.run.name for state in loaded.states() if state.state in states}


def test_other_seeds_are_run_at_the_best_value_only(tmp_path) -> None:
    loaded = study(tmp_path, axes=AXES, select=SELECT)
    assert names(loaded, "not begun") == SEARCH
    assert {run.name for run in loaded.definition.runs[: len(SEARCH)]} == SEARCH, "the search comes first"
    assert len(names(loaded, "undecided")) == 10
    loaded.run(parallel=2)
    assert names(loaded, "finished") == SEARCH | CHOSEN
    assert len(names(loaded, "not needed")) == 6
    assert loaded.definition.number_of_runs == len(SEARCH | CHOSEN)
    begun = {path.parent.name: path.read_text() for path in loaded.folder.glob("*/begun")}
    assert begun == dict.fromkeys(SEARCH | CHOSEN, "new\n")
    loaded.run()
    assert {path.parent.name: path.read_text() for path in loaded.folder.glob("*/begun")} == begun


def test_the_report_has_all_seeds_at_the_best_value(tmp_path) -> None:
    loaded = study(tmp_path, axes=AXES, select=SELECT)
    loaded.run(parallel=2)
    summary = loaded.summary()
    assert {run.name for run in summary.runs} == SEARCH | CHOSEN
    assert summary.choice("cera").value == "lr0.02"
    assert summary.results("cera", "perplexity")["lr0.02"] == pytest.approx({"seed0": 3.0, "seed1": 3.1, "seed2": 3.2})
    text = report_markdown(summary)
    assert "seed1: the seeds with which the learning_rate of each method is chosen" in text
    assert "| cera | 1,000 | lr0.02 (edge) | 4 of 4 | 3 | 3.1 [2.852, 3.348] |" in text
    assert "| cera | - | 3.1 | 4.1 | - |" in text, "the grid compares the seed of the search alone"
    path = tmp_path / "summary.json"
    summary.save(path)
    assert Summary.read(path) == summary


def test_all_seeds_decide_without_a_search(tmp_path) -> None:
    loaded = study(tmp_path, axes=AXES, select={"axis": "learning_rate"})
    assert len(names(loaded, "not begun")) == 15


def test_a_failed_search_leaves_its_method_undecided_and_the_same_command_goes_on(tmp_path) -> None:
    learning_rate = {"by": "adapter", "values": {"lora": ["1e-2", "-1"], "cera": ["2e-2", "3e-2"]}}
    loaded = study(tmp_path, axes={**AXES, "learning_rate": learning_rate}, select=SELECT)
    loaded.run(parallel=2)
    assert names(loaded, "failed") == {"lora-lr-1-seed1"}
    assert names(loaded, "undecided") == {f"lora-lr{rate}-seed{seed}" for rate in ("0.01", "-1") for seed in (0, 2)}
    assert {"cera-lr0.02-seed0", "cera-lr0.02-seed2"} <= names(loaded, "finished")
    assert {run.name for run in loaded.summary().runs if run.method == "lora"} == {
        "lora-lr0.01-seed1",
        "lora-lr-1-seed1",
    }


def test_a_part_without_its_search_is_undecided(tmp_path) -> None:
    loaded = study(tmp_path, axes=AXES, select=SELECT)
    part = loaded.only("lora-*-seed2")
    part.run()
    assert names(part, "undecided") == {f"lora-lr{rate}-seed2" for rate in ("0.01", "0.03", "0.1")}


def test_a_best_value_at_which_another_seed_diverges_gives_way_to_the_next(tmp_path) -> None:
    runs = [
        run("lora", 0.001, 0, {"perplexity": 3.0}),
        run("lora", 0.01, 0, {"perplexity": 2.0}),
        run("lora", 0.001, 1, {}, "not begun"),
        run("lora", 0.01, 1, {}, "not begun"),
    ]
    searching = synthetic(runs)
    searching = replace(searching, selection=Selection("learning_rate", search_seeds=("seed0",)))
    assert unwanted_runs(searching) == {runs[2].name: "not needed"}
    assert searching.choice("lora").value == "lr0.01"
    diverged = replace(searching, runs=(*runs[:3], run("lora", 0.01, 1, {}, "diverged")))
    assert unwanted_runs(diverged) == {}
    assert (diverged.choice("lora").value, diverged.choice("lora").excluded) == ("lr0.001", ["lr0.01"])


def test_a_plan_counts_the_runs_to_come(tmp_path, capsys) -> None:
    loaded = study(tmp_path, axes=AXES, select=SELECT)
    arguments = [str(tmp_path / "small.yaml"), "--runs", str(loaded.folder.parent)]
    assert main(["plan", *arguments, "--shell"]) == 0
    assert set(re.findall(r"--name=(\S+)", capsys.readouterr().out)) == SEARCH
    assert main(["status", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "15 runs: 5 not begun, 10 undecided" in shown
    assert "seed0" not in shown


def test_the_time_that_is_left_counts_the_runs_to_come(tmp_path) -> None:
    loaded = study(tmp_path, axes=AXES, select=SELECT)
    states = [
        replace(state, state="finished", seconds=10.0)
        if state.state == "not begun" and "lr0.03" in state.run.name
        else state
        for state in loaded.states()
    ]
    # three runs of the search are left, and two more seeds of each of the two methods
    assert seconds_left(states, parallel=1) == pytest.approx(10 * (3 + 4))


@pytest.mark.parametrize(
    ("written", "axes"),
    [([3], AXES), (1, AXES), ([[1]], AXES), ([0], {name: AXES[name] for name in ("adapter", "learning_rate")})],
)
def test_seeds_of_a_search_are_values_of_the_axis(tmp_path, written, axes) -> None:
    with pytest.raises(StudyError, match=r"select\.search_seeds must be a list of .*, got"):
        study(tmp_path, axes=axes, select={"axis": "learning_rate", "search_seeds": written})
