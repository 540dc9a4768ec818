"""A run that another one has computed already is copied, and no other one is."""

import copy
import json
from pathlib import Path

import pytest
from command_line import command, losses, run_here

from cera.runs.finished import FinishedRun
from cera.runs.reused import copy_run, finished_alike

AS_STARTED = ("--trainer.max_steps=12", "--trainer.num_sanity_val_steps=-1")


@pytest.fixture
def fit(two_runs, tiny_llama, tmp_path, monkeypatch, capsys):
    """Run ``cera train`` as the run ``cera`` was started, under another name; returns (directory, output)."""

    def fit(*options: str) -> tuple[Path, str]:
        arguments = command(tiny_llama, tmp_path, *AS_STARTED, "--name=new", f"--reuse={two_runs}", *options)
        status, printed = run_here(monkeypatch, capsys, arguments)
        assert status == 0, printed
        return tmp_path / "new", printed

    return fit


def test_a_run_with_the_same_settings_is_copied(two_runs, fit, tmp_path) -> None:
    new, printed = fit()
    assert f"fit has copied {two_runs / 'cera'}" in printed
    assert "Loading weights" not in printed
    copied, earlier = FinishedRun.read(new), FinishedRun.read(two_runs / "cera")
    assert copied.finished
    assert losses(new) == losses(two_runs / "cera")
    for file in ("adapter/adapter_model.safetensors", "checkpoints/step=12.ckpt"):
        assert (new / file).read_bytes() == (earlier.path / file).read_bytes()
    assert (copied.config["name"], copied.config["runs"]) == ("new", str(tmp_path))
    assert copied.config["trainer"]["default_root_dir"] == str(new)
    assert copied.identity == earlier.identity
    assert json.loads((new / "environment.json").read_text())["reused_from"] == str(earlier.path.resolve())


def test_a_run_whose_settings_refer_to_each_other_is_copied(two_runs, fit) -> None:
    _, printed = fit("--checkpoint_every=${fit.trainer.max_steps}")
    assert f"fit has copied {two_runs / 'cera'}" in printed


def test_a_run_with_another_seed_is_trained(two_runs, fit) -> None:
    new, printed = fit("--seed_everything=7")
    assert "has copied" not in printed
    assert losses(new) != losses(two_runs / "cera")
    assert losses(new).keys() == losses(two_runs / "cera").keys()


def changed(settings: dict, key: str, value: object) -> dict:
    """Return the settings with another value of one."""
    settings = copy.deepcopy(settings)
    *groups, last = key.split(".")
    inner = settings
    for group in groups:
        inner = inner[group]
    assert inner[last] != value
    inner[last] = value
    return settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed_everything", 7),
        ("model.learning_rate", 0.5),
        ("model.warmup", 0.5),
        ("model.adapter.init_args.dropout", 0.77),
        ("model.adapter.init_args.target_modules", ["q_proj", "k_proj"]),
        ("data.dataset.init_args.size", 61),
        ("data.batch_size", 3),
        ("trainer.max_steps", 24),
        ("trainer.precision", "bf16-mixed"),
        ("trainer.callbacks", [{"class_path": "cera.callbacks.SpectralTracker", "init_args": {"batches": 1}}]),
    ],
)
def test_a_setting_that_changes_a_number_makes_another_run(two_runs, key, value) -> None:
    settings = FinishedRun.read(two_runs / "cera").config
    assert finished_alike(two_runs, settings) is not None
    assert finished_alike(two_runs, changed(settings, key, value)) is None


@pytest.mark.parametrize(
    ("key", "value"), [("name", "x"), ("trainer.log_every_n_steps", 7), ("trainer.default_root_dir", "/elsewhere")]
)
def test_a_setting_that_is_bookkeeping_does_not(two_runs, key, value) -> None:
    settings = FinishedRun.read(two_runs / "cera").config
    assert finished_alike(two_runs, changed(settings, key, value)).path == two_runs / "cera"


def test_a_run_that_measures_the_base_needs_one_that_did(two_runs, tmp_path) -> None:
    earlier = FinishedRun.read(two_runs / "cera")
    folder = tmp_path / "study" / "without_base"
    folder.mkdir(parents=True)
    copy_run(earlier, folder, earlier.config)
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    header = lines[0].strip().split(",")
    column, epoch = header.index("val/perplexity"), header.index("epoch")
    kept = [line for line in lines[1:] if not (line.split(",")[column].strip() and not line.split(",")[epoch])]
    (folder / "metrics.csv").write_text("".join([lines[0], *kept]))
    assert finished_alike(tmp_path, earlier.config) is None
    assert finished_alike(tmp_path, changed(earlier.config, "trainer.num_sanity_val_steps", 0)).path == folder


def test_an_unfinished_run_is_not_copied(two_runs, tmp_path) -> None:
    earlier = FinishedRun.read(two_runs / "cera")
    folder = tmp_path / "half"
    folder.mkdir()
    copy_run(earlier, folder, earlier.config)
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(lines[: len(lines) // 2]))
    assert finished_alike(tmp_path, earlier.config) is None
