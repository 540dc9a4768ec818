"""Class paths of earlier versions."""

import pytest
from command_line import command, run_here
from conftest import REPOSITORY

from cera.cli.compose import compose
from cera.runs import moved
from cera.runs.moved import MOVED, current_argument, current_class_path, current_class_paths

EARLIER = sorted((REPOSITORY / "tests" / "fixtures" / "earlier").glob("*/config.yaml"))


def load(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


@pytest.mark.parametrize("path", sorted(MOVED.values()))
def test_moved_classes_exist(path) -> None:
    assert isinstance(load(path), type)


def test_callbacks_are_found_in_the_package(monkeypatch) -> None:
    assert current_class_path("callbacks.SpectralTracker") == "cera.callbacks.SpectralTracker"
    monkeypatch.setattr(moved, "_user_has_callbacks", lambda: True)
    assert current_class_path("callbacks.SpectralTracker") == "callbacks.SpectralTracker"


@pytest.mark.parametrize(
    "path", ["cera.CeraConfig", "peft.LoraConfig", "my.callbacks.Tracker", "cera.callbacks.Summary"]
)
def test_other_class_paths_stay(path) -> None:
    assert current_class_path(path) == path


def test_every_class_path_of_a_configuration_is_replaced_and_nothing_else() -> None:
    old = {"trainer": {"strategy": "cera.strategies.DeepSpeed", "callbacks": [{"class_path": "callbacks.Summary"}]}}
    new = {"trainer": {"strategy": "cera.training.DeepSpeed", "callbacks": [{"class_path": "cera.callbacks.Summary"}]}}
    assert current_class_paths(old) == new
    other = {"a": 1, "b": None, "prompt": "See callbacks.Summary for more.", "file": "callbacks./x"}
    assert current_class_paths(other) == other


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--trainer.strategy=cera.strategies.DeepSpeed", "--trainer.strategy=cera.training.DeepSpeed"),
        ("--trainer.callbacks+=callbacks.LRRobustness", "--trainer.callbacks+=cera.callbacks.LRRobustness"),
        ("callbacks.LRRobustness", "cera.callbacks.LRRobustness"),
        ('--x=[{"class_path": "callbacks.S"}]', '--x=[{"class_path": "cera.callbacks.S"}]'),
        ("--trainer.callbacks.init_args.every=1.5", "--trainer.callbacks.init_args.every=1.5"),
        ("--config=callbacks.yaml", "--config=callbacks.yaml"),
        ("--data.dataset.init_args.data_files=callbacks.D/x", "--data.dataset.init_args.data_files=callbacks.D/x"),
    ],
)  # fmt: skip
def test_values_of_arguments_are_replaced(argument, expected) -> None:
    assert current_argument(argument) == expected


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.parent.name)
def test_configuration_files_of_earlier_runs_load(path, tiny_llama, tmp_path, monkeypatch, capsys) -> None:
    assert compose(path)["trainer"]["callbacks"][0]["class_path"] == "cera.callbacks.SpectralTracker"
    options = [
        f"--model.base={tiny_llama}",
        "--model.adapter.init_args.layers_to_transform=[0,3]",
        f"--runs={tmp_path}",
    ]
    mistake = ["--trainer.max_steps=0"]  # found after every object is made, before the model is loaded
    arguments = [*command("x", tmp_path, config=str(path))[:4], *options, *mistake]
    status, printed = run_here(monkeypatch, capsys, arguments)
    assert status == 2
    assert "trainer.max_steps must be positive, got 0" in printed
