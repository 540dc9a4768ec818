"""Runs of a study that are trained together: which ones, what becomes of them, and that the summary is the same."""

import contextlib
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from conftest import REPOSITORY
from study_files import TRAINER, stand_in, study

from cera.cli import train
from cera.cli.main import main
from cera.runs.finished import FinishedRun
from cera.studies import processes
from cera.studies.axes import StudyError
from cera.studies.definition import parse_definition
from cera.studies.grouping import companions
from cera.studies.measures import Measure
from cera.studies.study import Study

TOGETHER = f"""
import os, pathlib, signal, subprocess, sys
options, *runs = " ".join(sys.argv[1:]).split(" --- ")
logs = pathlib.Path(options.removeprefix("--logs="))
with (logs / "groups").open("a") as file:
    file.write(" ".join(sorted(a.removeprefix("--name=") for a in sys.argv if a.startswith("--name="))) + "\\n")
statuses = []
for run in runs:
    name = next(a.removeprefix("--name=") for a in run.split() if a.startswith("--name="))
    with (logs / (name + ".log")).open("a") as log:
        command = [sys.executable, "-c", {TRAINER!r}, *run.split()]
        statuses.append(subprocess.run(command, stdout=log, stderr=log).returncode)
if min(statuses) < 0:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(max(statuses))
"""
"""In place of ``cera train-together``: the stand-in for ``cera train`` for each run in turn."""


@pytest.fixture
def trainer(monkeypatch) -> None:
    monkeypatch.setattr(processes, "TRAIN", stand_in())
    monkeypatch.setattr(processes, "TRAIN_TOGETHER", (sys.executable, "-c", TOGETHER))


def groups(loaded: Study) -> list[list[str]]:
    """The runs of each process that trained several."""
    file = loaded.folder / "study" / "groups"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def begun(loaded: Study, name: str) -> list[str]:
    return (loaded.folder / name / "begun").read_text().splitlines()


def test_companions_agree_in_all_but_rate_seed_scale_and_dropout(tmp_path) -> None:
    for name in ("base", "cera", "lora"):
        (tmp_path / f"{name}.yaml").write_text("")
    axes = {
        "adapter": {
            "lora": "lora.yaml",
            "cera": "cera.yaml",
            "scaled": {"config": "cera.yaml", "model.adapter.init_args.scaling": 4},
            "wet": {"config": "cera.yaml", "model.adapter.init_args.dropout": 0},
            "wide": {"config": "cera.yaml", "model.adapter.init_args.r": 8},
            "long": {"config": "cera.yaml", "trainer.max_steps": 9},
        },
        "learning_rate": [0.1, 0.2],
        "seed": [0, 1],
    }
    runs = parse_definition({"name": "x", "base": "base.yaml", "axes": axes}, tmp_path).runs
    of = {run.name: {other.labels["adapter"] for other in companions(run, runs)} for run in runs}
    assert of["cera-lr0.1-seed0"] == of["wet-lr0.2-seed1"] == {"cera", "scaled", "wet"}
    assert [of[f"{name}-lr0.1-seed0"] for name in ("lora", "wide", "long")] == [{"lora"}, {"wide"}, {"long"}]
    first = next(run for run in runs if run.name == "lora-lr0.1-seed0")
    assert len(companions(first, runs)) == 4


def test_runs_of_one_adapter_share_a_process(tmp_path, trainer, monkeypatch) -> None:
    class Measured(Measure):
        """Something that is measured by a process of its own after the training."""

        def command(self, run_dir: Path) -> list[str]:
            return [sys.executable, "-c", f"open({str(run_dir / 'measured')!r}, 'w')"]

        def values(self, run) -> dict[str, float]:
            return {"measured": 1.0} if (run.path / "measured").exists() else {}

    axes = {"adapter": {"lora": "lora.yaml", "cera": "cera.yaml"}, "learning_rate": [0.01, 0.02, 0.03]}
    loaded = study(tmp_path, axes=axes)
    loaded = replace(loaded, definition=replace(loaded.definition, measures=(*loaded.definition.measures, Measured())))
    most = []
    start = processes.Processes._open_job
    monkeypatch.setattr(
        processes.Processes, "_open_job", lambda self, *args: (start(self, *args), most.append(self.number))[0]
    )
    states = loaded.run(together=2)
    assert {state.state for state in states} == {"finished"}
    assert all((loaded.folder / run.name / "measured").exists() for run in loaded.definition.runs)
    assert groups(loaded) == [["lora-lr0.01", "lora-lr0.02"], ["cera-lr0.01", "cera-lr0.02"]]
    log = (loaded.folder / "study" / processes.TOGETHER_LOG).read_text()
    assert re.findall("(.*) is trained apart: no run that is left", log) == ["lora-lr0.03", "cera-lr0.03"]
    assert all(begun(loaded, run.name) == ["new"] for run in loaded.definition.runs)
    assert max(most) == 1  # as many processes as --parallel
    assert all(state.seconds > 0 for state in states)
    loaded.run(together=2)
    assert len(groups(loaded)) == 2


def test_a_failing_and_a_diverging_run_leave_their_companions_alone(tmp_path, trainer) -> None:
    loaded = study(tmp_path, axes={"learning_rate": [-1, 10, 0.01]})
    failed, diverged, finished = loaded.run(together=3)
    assert groups(loaded) == [["lr-1", "lr0.01", "lr10"]]
    assert (failed.state, failed.reason) == ("failed", "status 1: model.learning_rate must be positive, got -1.0.")
    assert diverged.state == "diverged"
    assert finished.state == "finished"


def test_runs_whose_process_is_killed_go_on_apart(tmp_path, trainer) -> None:
    loaded = study(tmp_path, axes={"learning_rate": [0.01, 0.03]}, settings={"kills": 1})
    assert {state.state for state in loaded.run(together=2)} == {"finished"}
    assert len(groups(loaded)) == 1
    assert all(begun(loaded, run.name) == ["new", "resumed at 1"] for run in loaded.definition.runs)


def test_mistakes_are_one_error(tmp_path, capsys) -> None:
    loaded = study(tmp_path)
    with pytest.raises(StudyError, match="together must be at least 1, got 0"):
        loaded.run(together=0)
    with pytest.raises(StudyError, match="on Ray each run has its own process"):
        loaded.run(together=2, ray="local")
    file = str(tmp_path / "small.yaml")
    assert main(["study", "plan", file, "--together=2"]) == 2
    assert "--together is an option of `cera study run`" in capsys.readouterr().err
    assert main(["study", "run", file, "--together=0"]) == 2
    assert "--together must be at least 1, got 0" in capsys.readouterr().err
    assert main(["train-together", "---", "--config=x"]) == 2
    assert "each run needs a --name, got --config=x" in capsys.readouterr().err
    assert main(["train-together", "---", "--name=x", "---", "--name", "x"]) == 2
    assert "two are called 'x'" in capsys.readouterr().err
    assert main(["train-together", "--positions=0", "---", "--name=x"]) == 2
    assert "--positions must be at least 1, got 0" in capsys.readouterr().err


def definition(name: str, base: str, adapters: list[str], rates: list[float]) -> str:
    """The file of a study of a tiny Llama, in YAML."""
    configs = REPOSITORY / "configs"
    return yaml.safe_dump({
        "name": name,
        "base": str(configs / "parts" / "smol.yaml"),
        "settings": {
            "model.base": base, "model.adapter.init_args.r": 4, "trainer.precision": "32-true",
            "data.dataset.init_args.size": 60, "data.validation_rows": 4, "data.batch_size": 1, "data.max_length": 96,
            "trainer.max_steps": 6, "trainer.val_check_interval": 6, "trainer.enable_progress_bar": False,
        },
        "axes": {
            "adapter": {adapter: str(configs / "adapters" / f"{adapter}.yaml") for adapter in adapters},
            "learning_rate": rates,
        },
        "measure": ["perplexity", {"spectra": {"protocol": "ours"}}],
    })  # fmt: skip


@pytest.fixture(scope="module")
def apart(tiny_llama, tmp_path_factory) -> Study:
    """A study of four runs of a tiny Llama, each trained by itself."""
    folder = tmp_path_factory.mktemp("apart")
    file = folder / "small.yaml"
    file.write_text(definition("small", tiny_llama, ["lora", "cera"], [1e-3, 1e-2]))
    study = Study.load(file, folder / "runs")
    for run in study.definition.runs:
        command = processes.command_to_train(study.folder, run)
        with contextlib.chdir(REPOSITORY), patch.dict(os.environ):
            assert train.main(command[len(processes.TRAIN) :]) == 0
    return study


def test_a_study_has_the_same_summary(apart, tiny_llama, tmp_path, monkeypatch) -> None:
    """Two processes of two runs each, and each run by itself."""
    monkeypatch.chdir(REPOSITORY)
    loaded = Study.load(apart.folder.parent.parent / "small.yaml", tmp_path)
    assert {state.state for state in loaded.run(together=2)} == {"finished"}
    log = (loaded.folder / "study" / "together.log").read_text()
    assert log.count("ended with status 0\n") == 4
    assert log.count("passes of 2 runs: 6\n") == 2
    ours, theirs = loaded.summary(), apart.summary()
    assert [run.name for run in ours.runs] == [run.name for run in theirs.runs]
    for run, expected in zip(ours.runs, theirs.runs, strict=True):
        assert run.values == pytest.approx(expected.values, rel=1e-4)


def test_a_run_that_another_study_has_is_copied_and_its_companions_are_trained(
    apart, tiny_llama, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    file = tmp_path / "more.yaml"
    file.write_text(definition("more", tiny_llama, ["cera"], [1e-3, 3e-3, 3e-2]))
    study = Study.load(file, apart.folder.parent).reusing()
    assert {state.state for state in study.run(together=3)} == {"finished"}
    known = FinishedRun.read(apart.folder / "cera-lr1e-3")
    runs = {run.name: FinishedRun.read(study.folder / run.name) for run in study.definition.runs}
    records = {name: json.loads((run.path / "environment.json").read_text()) for name, run in runs.items()}
    copied = {name: record.get("reused_from") for name, record in records.items()}
    assert copied == {"cera-lr1e-3": str(known.path.resolve()), "cera-lr3e-3": None, "cera-lr0.03": None}
    assert runs["cera-lr1e-3"].curve("train/loss") == known.curve("train/loss")
    log = (study.folder / "study" / "together.log").read_text()
    assert re.findall(r"passes of (\d) runs: (\d)", log) == [("2", "6")]  # the copied one is in none
