"""A study in a notebook: one table that is drawn anew in its place, the figure, and results that may not be there."""

from dataclasses import replace

import nbformat
import pytest
from conftest import REPOSITORY
from nbclient import NotebookClient
from study_files import stand_in, study

from cera.foreign_files import FileError
from cera.studies import processes
from cera.studies.axes import StudyError
from cera.studies.report_figure import figure, place
from cera.studies.results import Results
from cera.studies.selection import t_interval
from cera.studies.status import NotebookTable, notebook_shell, status_rows

RANKS = {
    "axes": {
        "adapter": {"lora": "lora.yaml", "full": "cera.yaml"},
        "rank": {
            "by": "adapter",
            "values": {"lora": {"r2": {"a.r": 2}, "r8": {"a.r": 8}}, "full": {"all": {"a.r": 0}}},
        },
        "learning_rate": ["1e-2", "3e-2"],
        "seed": [0, 1],
    },
    "select": {"axis": "learning_rate"},
}
"""A study of two ranks and a method that has none."""

CELL = """
import sys
sys.path.insert(0, {folder!r})
from study_files import stand_in
from cera.studies import processes
from cera.studies.study import Study

processes.TRAIN = stand_in()
study = Study.load({file!r}, runs={runs!r})
study.run(parallel=2)
study.plot()
"""


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "TRAIN", stand_in())
    loaded = study(tmp_path, settings={"wait": 0}, **RANKS)
    loaded.run(parallel=3)
    return loaded


def test_a_notebook_shows_one_table_of_the_last_states_and_the_figure(tmp_path, monkeypatch) -> None:
    study(tmp_path, settings={"wait": 0.2})
    folder = str(REPOSITORY / "tests" / "studies")
    source = CELL.format(folder=folder, file=str(tmp_path / "small.yaml"), runs=str(tmp_path / "runs"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    # tqdm may print a warning
    table, drawn = (output for output in notebook.cells[0].outputs if output.output_type != "stream")
    assert table.output_type == "display_data"
    assert table.data["text/html"].count("<td>finished</td>") == 4
    assert "4 runs: 4 finished" in table.data["text/html"]
    assert "image/png" in drawn.data


def test_outside_of_a_notebook_a_line_is_printed_for_each_change(tmp_path, monkeypatch, capsys) -> None:
    assert notebook_shell() is None
    monkeypatch.setattr(processes, "TRAIN", stand_in())
    study(tmp_path, settings={"wait": 0}).run(parallel=4)
    assert "4 runs: 4 finished" in capsys.readouterr().err


def test_the_table_of_a_notebook_has_the_rows_of_the_others_and_a_reason_only_if_there_is_one(ranks) -> None:
    states = ranks.states()
    shown = NotebookTable(1).html(states)
    assert [row[0] for row in status_rows(states)] == [state.run.name for state in states]
    assert all(f"<td>{state.run.name}</td>" in shown for state in states)
    assert "<th>reason</th>" not in shown


def test_a_metric_over_the_rank_has_the_values_of_each_methods_best_rate(ranks) -> None:
    """The stand-in's perplexity is 2 at a rate of 0.01 and a tenth more with each seed; at 0.03 it is 2 higher."""
    (panel,) = figure(ranks.summary(), x="rank").axes
    (lora,) = panel.containers
    line, _, (bars,) = lora
    assert line.get_xdata().tolist() == [2, 8]
    assert line.get_ydata().tolist() == pytest.approx([2.05, 2.05])
    for segment in bars.get_segments():
        assert segment[:, 1].tolist() == pytest.approx(t_interval([2.0, 2.1]))
    level = next(each for each in panel.lines if each.get_label() == "full")
    assert list(level.get_ydata()) == pytest.approx([2.05, 2.05])
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["full", "lora"]
    assert "2 seeds" in panel.get_title()


def test_over_the_selected_axis_the_figure_is_the_reports(ranks) -> None:
    summary = ranks.summary()
    (panel,), (reports,) = figure(summary, x="learning_rate").axes, figure(summary).axes
    assert panel.get_xlabel() == "learning_rate"
    for line, other in zip(panel.lines, reports.lines, strict=True):
        assert (line.get_xydata() == other.get_xydata()).all()


def test_numbers_on_an_axis_are_its_values_or_end_its_labels(ranks) -> None:
    summary = ranks.summary()
    places = {run.labels["rank"]: place(run, summary, "rank") for run in summary.runs}
    assert places == {"r2": ("lora", 2), "r8": ("lora", 8), "all": ("full", None)}
    assert {place(run, summary, "seed").number for run in summary.runs} == {0, 1}


def test_the_rank_is_in_the_labels_of_adapters_where_it_is_no_axis(ranks) -> None:
    labels = {"adapter": "lora-r16-aligned", "learning_rate": "lr1e-2", "seed": "seed0"}
    run = replace(ranks.summary().runs[0], labels=labels, numbers={})
    assert place(run, ranks.summary(), "rank") == ("lora-aligned", 16)
    assert place(replace(run, labels={**labels, "adapter": "full-rate"}), ranks.summary(), "rank") == (
        "full-rate",
        None,
    )


def test_a_metric_that_a_method_does_not_have_is_drawn_of_the_others(ranks) -> None:
    summary = ranks.summary()
    runs = [replace(r, values={**r.values, "kept": 0.9} if r.method == "full-all" else r.values) for r in summary.runs]
    (panel,) = figure(replace(summary, runs=tuple(runs)), metric="kept").axes
    rings = [line for line in panel.lines if line.get_markersize() == 11]
    assert [ring.get_ydata().tolist() for ring in rings] == [[0.9]]


def test_an_unknown_axis_or_metric_is_an_error_that_names_those_that_there_are(ranks) -> None:
    with pytest.raises(StudyError, match=r"adapter, rank, learning_rate, seed.*'size'"):
        figure(ranks.summary(), x="size")
    with pytest.raises(StudyError, match=r"\(perplexity\), got 'er'"):
        figure(ranks.summary(), x="rank", metric="er")


def test_committed_results_come_before_those_of_this_machine(ranks, tmp_path) -> None:
    summary = ranks.summary()
    here = Results.find("small", committed=tmp_path / "results", runs=tmp_path / "runs")
    assert here.summary == summary
    assert "**small**: 12 of 12 runs have a result" in here._repr_markdown_()
    ranks.report(tmp_path / "results" / "small")
    committed = Results.find("small", committed=tmp_path / "results", runs=tmp_path / "runs")
    assert committed.path == tmp_path / "results" / "small" / "summary.json"
    assert "| lora-r2 |" in committed.table("methods").text
    with pytest.raises(StudyError, match="methods, differences, grid, not_finished, got 'seeds'"):
        committed.table("seeds")
    assert committed.table("differences").text == "*small has nothing for this table.*"  # it names no reference
    (tmp_path / "results" / "small" / "summary.json").write_text("{}")
    with pytest.raises(FileError):
        Results.find("small", committed=tmp_path / "results")


def test_missing_results_say_which_command_makes_them() -> None:
    missing = Results.find("tunnel_nothing", committed="../results", runs="../runs")
    text = missing._repr_markdown_()
    assert text.startswith("**tunnel_nothing has not been run**")
    assert "cera study run configs/studies/tunnel_nothing.yaml" in text
    assert "cera study report configs/studies/tunnel_nothing.yaml --out results/tunnel_nothing" in text
    for shown in (missing.table("methods"), missing.figure(x="rank")):
        assert shown._repr_markdown_() == "*tunnel_nothing has not been run.*"


def test_a_rank_at_which_a_method_has_no_result_is_a_cross_and_no_point(ranks) -> None:
    summary = ranks.summary()
    runs = tuple(replace(run, state="diverged") if run.method == "lora-r8" else run for run in summary.runs)
    (panel,) = figure(replace(summary, runs=runs), x="rank").axes
    (cross,) = (line for line in panel.lines if line.get_marker() == "x")
    (lora,) = panel.containers
    assert cross.get_xdata().tolist() == [8]
    assert lora[0].get_xdata().tolist() == [2]
