"""`validate`, `test` and `predict` take the newest checkpoint of the named run and leave its record as it is."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from command_line import command, losses, run_here

MEASURING = ("validate", "test", "predict")


@pytest.fixture
def runs(two_runs, tmp_path) -> Path:
    """A copy of the finished run ``cera``, as the only run."""
    shutil.copytree(two_runs / "cera", tmp_path / "runs" / "cera")
    return tmp_path / "runs"


@pytest.fixture
def measure(tiny_llama, runs, monkeypatch, capsys, caplog):
    """Call a subcommand for the run ``cera``; returns (status, output)."""

    def call(subcommand: str, *options: str) -> tuple[int, str]:
        caplog.clear()
        caplog.set_level(logging.INFO, logger="lightning.pytorch")
        short = ["--name=cera", "--trainer.limit_predict_batches=1", "--model.max_new_tokens=2", *options]
        arguments = command(tiny_llama, runs, "--trainer.max_steps=12", "--trainer.num_sanity_val_steps=-1", *short)
        status, printed = run_here(monkeypatch, capsys, [*arguments[:2], subcommand, *arguments[2:]])
        return status, printed + caplog.text

    return call


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("options", [[], ["--ckpt_path=last"]])
def test_validate_takes_the_newest_checkpoint_says_which_and_writes_nothing(runs, measure, options):
    before = content(runs)
    status, printed = measure("validate", "--trainer.callbacks+=cera.callbacks.GenerationSamples", *options)
    assert status == 0, printed
    assert f"validate takes {runs}/cera/checkpoints/step=12.ckpt" in printed
    assert content(runs) == before
    assert "mean over layers" in printed
    assert "spectra_by_layer" not in printed
    assert f"`cera spectra {runs / 'cera'} --csv FILE`" in printed
    trained, base = (losses(runs / "cera", "val/perplexity")[step] for step in (11, 0))
    assert f"{trained:.3f}"[:4] in printed
    assert f"{base:.3f}"[:4] not in printed


def test_test_and_predict_write_into_the_run_alone(runs, measure):
    before = content(runs)
    status, printed = measure("test")
    assert status == 0, printed
    assert "test takes" in printed
    status, printed = measure("predict")
    assert status == 0, printed
    assert json.loads((runs / "cera" / "predictions.jsonl").read_text().splitlines()[0])["prompt"]
    assert content(runs).keys() - before.keys() == {"cera/predictions.jsonl"}
    assert before.items() <= content(runs).items()


@pytest.mark.parametrize("subcommand", MEASURING)
def test_without_a_checkpoint_it_is_one_line_and_nothing_is_made(runs, measure, subcommand):
    for reason in ("no such run", "a run without a checkpoint"):
        if reason == "a run without a checkpoint":
            (runs / "other" / "checkpoints").mkdir(parents=True)
            (runs / "other" / "config.yaml").touch()
        before = sorted(runs.rglob("*"))
        status, printed = measure(subcommand, "--name=other")
        assert status == 2
        expected = f"error: {subcommand} needs a trained run: no run of the name 'other' in {runs} has a checkpoint"
        assert [expected in line for line in printed.splitlines() if line.startswith("error")] == [True]
        assert sorted(runs.rglob("*")) == before


def test_a_checkpoint_by_its_path_belongs_to_its_run(runs, measure, tmp_path):
    checkpoint = runs / "cera" / "checkpoints" / "step=12.ckpt"
    status, printed = measure("predict", "--name=other", f"--ckpt_path={checkpoint}")
    assert status == 0, printed
    assert (runs / "cera" / "predictions.jsonl").exists()
    assert {p.name for p in runs.iterdir()} == {"cera"}
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(checkpoint, alone / "step=12.ckpt")
    status, printed = measure("predict", f"--ckpt_path={alone / 'step=12.ckpt'}")
    assert status == 0, printed
    assert {p.name for p in alone.iterdir()} == {"step=12.ckpt", "predictions.jsonl"}


def test_last_passes_over_a_newer_run_without_a_checkpoint(runs, measure):
    (runs / "cera@2").mkdir()
    (runs / "cera@2" / "config.yaml").touch()
    status, printed = measure("fit", "--ckpt_path=last")
    assert status == 0, printed
    assert f"fit resumes {runs}/cera/checkpoints/step=12.ckpt" in printed
    assert "Nothing left to do" in printed
    assert measure("validate")[0] == 0
    assert content(runs / "cera@2") == {"config.yaml": b""}
