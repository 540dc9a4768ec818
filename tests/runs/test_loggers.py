"""metrics.csv and TensorBoard are written beside loggers of the user's own, and the summary names what is there."""

import importlib.util
import json
import logging
import sqlite3
from pathlib import Path

import pytest
from command_line import command, losses, run_here
from conftest import REPOSITORY
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from cera.callbacks.summary import log_places
from cera.runs.loggers import MetricsCSV

SHORT = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--data.validation_rows=2",
    "--trainer.callbacks=[]",
]
CSV = "lightning.pytorch.loggers.CSVLogger"
TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"


@pytest.fixture
def fit(tiny_llama, tmp_path, monkeypatch, capsys):
    """Fit for two steps with options, as the run ``test``; returns (its directory, output)."""

    def fit(*options: str) -> tuple[Path, str]:
        status, printed = run_here(monkeypatch, capsys, command(tiny_llama, tmp_path / "runs", *SHORT, *options))
        assert status == 0, printed
        return tmp_path / "runs" / "test", printed

    return fit


def logs(printed: str) -> list[str]:
    return [line.removeprefix("logs").strip() for line in printed.splitlines() if line.startswith("logs")]


def test_by_default_a_run_has_metrics_csv_and_tensorboard(fit) -> None:
    run, printed = fit()
    assert list(losses(run)) == [0, 1]
    assert list(run.glob("events.out.tfevents.*"))
    assert logs(printed) == [f"tensorboard --logdir {run}", str(run / "metrics.csv")]


def test_false_leaves_metrics_csv_alone(fit) -> None:
    run, printed = fit("--trainer.logger=false")
    assert list(losses(run)) == [0, 1]
    assert not list(run.glob("events.out.tfevents.*"))
    assert logs(printed) == [str(run / "metrics.csv")]


@pytest.mark.parametrize("form", ["one", "list"])
def test_a_logger_of_the_users_own_is_added(fit, tmp_path, form) -> None:
    csv_logger = {"class_path": CSV, "init_args": {"save_dir": str(tmp_path / "own")}}
    run, printed = fit(f"--trainer.logger={json.dumps(csv_logger if form == 'one' else [csv_logger])}")
    assert list(losses(run)) == [0, 1]
    assert list(losses(tmp_path / "own" / "lightning_logs" / "version_0")) == [0, 1]
    assert list(run.glob("events.out.tfevents.*"))
    assert logs(printed) == [
        f"tensorboard --logdir {run}", str(run / "metrics.csv"), f"CSVLogger in {tmp_path / 'own'}"
    ]  # fmt: skip


def test_a_tensorboard_logger_of_the_users_own_replaces_the_runs(fit, tmp_path) -> None:
    csv_logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(tmp_path / "own")},
    }
    run, printed = fit(f"--trainer.logger={json.dumps(csv_logger)}")
    assert list(losses(run)) == [0, 1]
    assert not list(run.glob("events.out.tfevents.*"))
    assert list((tmp_path / "own").rglob("events.out.tfevents.*"))
    assert logs(printed)[0] == str(run / "metrics.csv")


def test_places_of_loggers(tmp_path) -> None:
    loggers = [MetricsCSV(tmp_path), TensorBoardLogger(tmp_path / "tb", version=3), CSVLogger(tmp_path / "csv")]
    assert log_places(loggers) == [
        f"{tmp_path}/metrics.csv", f"tensorboard --logdir {tmp_path}/tb/lightning_logs/version_3",
        f"CSVLogger in {tmp_path}/csv",
    ]  # fmt: skip
    assert log_places([]) == []


# Loggers of other packages


def documented(name: str) -> str:
    """The configuration of a logger as the documentation has it."""
    text = (REPOSITORY / "docs" / "training.md").read_text()
    block = next(part for part in text.split("```yaml\n")[1:] if name in part.partition("```")[0])
    return block.partition("```")[0]


@pytest.mark.parametrize(
    ("name", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow"), ("TrackioLogger", "trackio")]
)
def test_without_its_package_a_documented_logger_is_one_line(
    tiny_llama, tmp_path, monkeypatch, capsys, name, package
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == package else find_spec(module))
    (tmp_path / "logger.yaml").write_text(documented(name))
    arguments = command(tiny_llama, tmp_path / "runs", f"--config={tmp_path / 'logger.yaml'}")
    status, printed = run_here(monkeypatch, capsys, arguments)
    assert status == 2
    assert f"this machine lacks the Python package {package}: pip install {package}. " in printed
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def fit_with(fit, tmp_path, monkeypatch):
    """Fit with the documented configuration of a logger; nothing may be written to the working directory."""

    def fit_with(name: str) -> tuple[Path, str]:
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        before = {path.name for path in REPOSITORY.iterdir()}
        (tmp_path / "logger.yaml").write_text(documented(name))
        run, printed = fit(f"--config={tmp_path / 'logger.yaml'}")
        assert {path.name for path in REPOSITORY.iterdir()} == before
        assert list(losses(run)) == [0, 1]
        assert list(run.glob("events.out.tfevents.*"))
        return run, printed

    return fit_with


def test_wandb(fit_with, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, printed = fit_with("WandbLogger")
    assert list((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert f"WandbLogger in {run}" in logs(printed)


def test_mlflow(fit_with, monkeypatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run, _ = fit_with("MLFlowLogger")
    (metric,) = (run / "mlruns").rglob("metrics/train/loss")
    assert [float(line.split()[1]) for line in metric.read_text().splitlines()] == pytest.approx(
        list(losses(run).values())
    )


def test_trackio(fit_with, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    utils = pytest.importorskip("trackio.utils")
    run, _ = fit_with("TrackioLogger")
    database = utils.TRACKIO_DIR / "cera.db"
    rows = sqlite3.connect(database).execute("select step, metrics from metrics where run_name = 'test'").fetchall()
    logged = {step: json.loads(values)["train/loss"] for step, values in rows if b"train/loss" in values}
    assert logged == pytest.approx(losses(run))


def test_a_configuration_of_another_run_does_not_log_into_it(fit, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "tests"))
    first, _ = fit("--trainer.logger=probes.CSVHere")
    assert losses(first / "csv" / "lightning_logs" / "version_0")
    before = sorted(first.rglob("*"))
    fit(f"--config={first / 'config.yaml'}", "--name=second")
    assert losses(tmp_path / "runs" / "second" / "csv" / "lightning_logs" / "version_0")
    assert sorted(first.rglob("*")) == before
