"""``cera study`` on the tiny Llama, as a user runs it."""

import json
import os
import re
import shlex
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml
from command_line import command, environment, run_here
from conftest import REPOSITORY
from study_files import study

from cera.cli.main import main
from cera.runs.finished import FinishedRun
from cera.studies.measures import HeldOutPerplexity, SpectraMeasures, TaskAccuracy
from cera.studies.study import Study

SHIPPED = sorted((REPOSITORY / "configs" / "studies").glob("*.yaml"))
HELD_OUT = {
    "data.validation": {"class_path": "cera.data.ReasoningGymWordProblems", "init_args": {"size": 6, "skip": 60}},
    "data.validation_rows": 0,
}
"""Rows behind the 60 that the tiny runs are trained and validated on."""

LLAMA = str(REPOSITORY / "configs" / "models" / "llama-3-8b")


def tiny_study(base: str, folder: Path) -> Path:
    """Write a 2 x 2 study of the tiny Llama, of which one run cannot work."""
    given = dict(argument[2:].split("=", 1) for argument in command(base, folder)[4:])
    for dropped in ("runs", "name", "model.learning_rate", "trainer.num_sanity_val_steps", "answer_tokens"):
        del given[dropped]
    small = {"data.max_length": "96", "trainer.max_steps": "6", "trainer.val_check_interval": "3"}
    callbacks = [f"cera.callbacks.{name}" for name in ("SpectralTracker", "DivergenceGuard")]  # which draw nothing
    given |= {**small, "checkpoint_every": "3", "trainer.callbacks": str(callbacks)}
    adapters = REPOSITORY / "configs" / "adapters"
    content = {
        "name": "tiny",
        "base": str(REPOSITORY / "configs" / "parts" / "smol.yaml"),
        "settings": {key: yaml.safe_load(value) for key, value in given.items()},
        "axes": {
            "adapter": {name: str(adapters / f"{name}.yaml") for name in ("cera", "lora")},
            "learning_rate": {"by": "adapter", "values": {"cera": [1e-2, 2e-2], "lora": [1e-2, -1]}},
        },
        "measure": ["perplexity", "spectra"],
        "select": {"axis": "learning_rate"},
        "report": {"metrics": ["perplexity", "effective_rank"], "reference": "lora"},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def kill_at_row(run: Path, row: int, killed: list[int]) -> None:
    """Kill the process that writes to a run when it has written a row of metrics: of the base, a step, a validation."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if (run / "metrics.csv").exists() and len((run / "metrics.csv").read_text().splitlines()) > row:
            holder = re.search(r"process (\d+)", (run / ".lock").read_text())
            os.kill(int(holder[1]), signal.SIGKILL)
            killed.append(int(holder[1]))
            return
        time.sleep(0.01)


def test_a_study_with_a_failing_and_a_killed_run_comes_to_its_report(tiny_llama, tmp_path, monkeypatch, capsys) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    path = tiny_study(tiny_llama, tmp_path)
    runs = tmp_path / "runs"
    killed: list[int] = []
    killer = threading.Thread(target=kill_at_row, args=(runs / "tiny" / "cera-lr0.01", 6, killed))
    killer.start()
    assert main(["study", "run", str(path), f"--runs={runs}", "--parallel=2"]) == 1
    killer.join()
    assert len(killed) == 1
    printed = capsys.readouterr()
    assert "4 runs: 3 finished, 1 failed" in printed.err
    loaded = Study.load(path, runs)
    states = {state.run.name: state for state in loaded.states()}
    failed = states.pop("lora-lr-1")
    assert failed.state == "failed"
    assert "learning_rate" in failed.reason
    assert {state.state for state in states.values()} == {"finished"}
    environment_file = json.loads((runs / "tiny" / "cera-lr0.01" / "environment.json").read_text())
    assert [resumed["from_step"] for resumed in environment_file["resumed"]] == [3]
    bases = {name: 0 in FinishedRun.read(runs / "tiny" / name).curve("val/perplexity") for name in states}
    assert bases == {"cera-lr0.01": True, "cera-lr0.02": False, "lora-lr0.01": False}

    assert main(["study", "status", str(path), f"--runs={runs}"]) == 0
    assert re.search(r"cera-lr0.02 +finished +6 of 6 +[\d.e+]+ ", capsys.readouterr().out)
    assert main(["study", "report", str(path), f"--runs={runs}", f"--out={tmp_path / 'report'}"]) == 0
    report = (tmp_path / "report" / "report.md").read_text()
    assert "| lora-lr-1 | failed |" in report
    run, first = (FinishedRun.read(runs / "tiny" / name) for name in ("lora-lr0.01", "cera-lr0.01"))
    assert f"{first.curve('val/perplexity')[0]:.4g} (cera-lr0.01)" in report
    assert f"{run.curve('val/perplexity')[6]:.4g}" in report
    assert f"{SpectraMeasures().values(run)['effective_rank']:.4g}" in report
    # the command for a scheduler goes on with what is left
    capsys.readouterr()
    assert main(["study", "plan", str(path), f"--runs={runs}", "--shell"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert shlex.split(line)[-5:-3] == ["--model.learning_rate=-1", "--trainer.num_sanity_val_steps=0"]


def test_each_command_of_plan_shell_is_one_line_that_a_shell_reads_back(tmp_path, capsys) -> None:
    text = "a 'word' \"and\" $HOME; rm *"
    loaded = study(tmp_path, axes={"data": {"a": {"data.dataset.init_args.path": text}, "b": {"data.packing": True}}})
    assert main(["study", "plan", str(tmp_path / "small.yaml"), f"--runs={tmp_path / 'runs'}", "--shell"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(loaded.definition.runs)
    for line, run in zip(lines, loaded.definition.runs, strict=True):
        python, *words = shlex.split(line)
        assert (python, words[:3]) == ("python", ["-m", "cera", "train"])
        assert words[3:] == [*run.arguments(), f"--runs={loaded.folder}", f"--name={run.name}", "--answer_tokens=0"]
    assert f"--data.dataset.init_args.path={text}" in shlex.split(lines[0])


QUICK = {"fig1", "smol_lr", "smol_table3", "table1", "table3", "tunnel_controls", "tunnel_table3"}
"""Studies that are planned in the usual tests; the others take minutes together."""


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow]) for path in SHIPPED],
)
def test_every_shipped_study_plans(path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(REPOSITORY)
    base = [] if path.stem.startswith("smol") else [f"--base={LLAMA}"]  # a scale model's need not be on this machine
    assert main(["study", "plan", str(path), f"--runs={tmp_path}", *base]) == 0
    printed = capsys.readouterr().out
    assert "unknown, as no run has ended yet" in printed
    planned = [state.run for state in Study.load(path, tmp_path).states() if state.state == "not begun"]
    assert planned
    for run in planned:
        assert re.search(rf"^{re.escape(run.name)} +{re.escape(run.method)} +[\d,]+$", printed, re.MULTILINE), run.name


def test_a_key_that_does_not_exist_is_named_with_its_run(tmp_path, capsys, smol) -> None:
    study(tmp_path, base="cera://parts/smol", axes={"rank": {"r8": {"model.adaptr.init_args.r": 8}}})
    assert main(["study", "plan", str(tmp_path / "small.yaml")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: r8: ")
    assert "adaptr" in error


def test_a_base_that_is_not_here_leaves_the_sizes_unknown(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("cera.cli.training_run.on_hub", lambda *given: ["access to the Hugging Face hub"])
    axes = {"adapter": {"lora": "cera://adapters/lora"}}
    study(tmp_path, base="cera://parts/smol", axes=axes)
    assert main(["study", "plan", str(tmp_path / "small.yaml"), f"--runs={tmp_path}"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"^lora +lora +unknown$", printed.out, re.MULTILINE)
    assert "parameters unknown: this machine lacks access to the Hugging Face hub" in printed.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run", "--shell"], "--shell is an option of `cera study plan`"),
        (["plan", "--out=x"], "--out is an option of `cera study report`"),
        (["run", "--parallel=0"], "--parallel must be at least 1, got 0"),
    ],
)
def test_options_of_another_action(tmp_path, capsys, options, message) -> None:
    study(tmp_path)
    action, option = options
    assert main(["study", action, str(tmp_path / "small.yaml"), option]) == 2
    assert message in capsys.readouterr().err


# What is measured of a run


def test_perplexity_on_rows_that_nothing_has_seen(two_runs, tmp_path, monkeypatch, capsys) -> None:
    measure = HeldOutPerplexity(HELD_OUT)
    run = FinishedRun.read(two_runs / "cera")
    assert measure.values(run) == {}
    *_, train, test = measure.command(run.path)[:5]
    assert (train, test) == ("train", "test")
    status, printed = run_here(monkeypatch, capsys, ["", "", *measure.command(run.path)[4:]])
    assert status == 0, printed
    ((name, value),) = measure.values(run).items()
    assert name == "held_out_perplexity"
    assert f"{value:.4f}" in printed
    assert value != run.curve("val/perplexity")[12]
    (run.path / "held_out_perplexity.json").write_text('{"test/perplexity": "nan"}')
    assert str(measure.values(run)[name]) == "nan"
    (run.path / "held_out_perplexity.json").write_text('{"test/perplexity": []}')
    with pytest.raises(ValueError, match=r"test/perplexity must be a number, got \[\]"):
        measure.values(run)
    (run.path / "held_out_perplexity.json").unlink()


def test_spectra_by_protocol(two_runs) -> None:
    run = FinishedRun.read(two_runs / "cera")
    ours = SpectraMeasures().values(run)
    assert {"effective_rank", "auc_90"} <= ours.keys()
    latent = SpectraMeasures(quantity="latent").values(run)
    assert latent.keys() == {f"latent_{name}" for name in ours}
    assert SpectraMeasures(centre=False).values(run) == {f"{name}_uncentred": value for name, value in ours.items()}
    centred = SpectraMeasures(centre=True).values(run)
    assert centred.keys() == {f"{name}_centred" for name in ours}
    *_, recorded = run.curve("spectra_centred/effective_rank/mean").values()
    assert centred["effective_rank_centred"] == pytest.approx(recorded, rel=1e-5)
    assert centred["effective_rank_centred"] != pytest.approx(ours["effective_rank"], rel=0.01)
    with pytest.raises(ValueError, match="protocol authors measures tokens 'with_padding', and the run recorded 'all'"):
        SpectraMeasures("authors").values(run)


def test_accuracy_on_a_task(two_runs, tmp_path) -> None:
    run, measure = FinishedRun.read(two_runs / "cera"), TaskAccuracy("eval.yaml", "mine")
    assert measure.values(run) == {}
    assert measure.command(run.path)[-3:] == ["--config=eval.yaml", f"--adapter={run.path}", "--evaluation.name=mine"]
    folder = run.path / "eval" / "mine"
    folder.mkdir(parents=True)
    (folder / "eval.json").write_text('{"metrics": {"pass@1": {"value": 0.25, "low": 0, "high": 1}}}')
    assert measure.values(run) == {"mine_pass@1": 0.25}
    (folder / "eval.json").write_text('{"metrics": []}')
    with pytest.raises(ValueError, match="has no metrics"):
        measure.values(run)
    (folder / "eval.json").unlink()
