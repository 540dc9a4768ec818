"""``~`` in any path that a user gives is the home directory, and names are names of directories."""

from pathlib import Path

import pytest
import yaml
from command_line import command, run_here
from conftest import REPOSITORY

from cera.cli.paths import expand_home, user_path, with_home
from cera.cli.training_run import training_parser
from cera.evaluation.command import build_parser
from cera.evaluation.evaluate import Evaluation
from cera.evaluation.tasks import GSM8K
from cera.runs.directory import choose
from cera.runs.names import check_name


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_leading_tilde_is_expanded_once_and_no_other(home) -> None:
    assert user_path("~/a") == home / "a"
    assert user_path("./~/a") == Path("~/a")
    assert expand_home("a/~") == "a/~"
    assert expand_home("HuggingFaceTB/SmolLM2") == "HuggingFaceTB/SmolLM2"


def test_options_of_an_evaluation_are_expanded_in_arguments_and_files(home) -> None:
    (home / "task.yaml").write_text(
        "evaluation:\n  task: {class_path: cera.evaluation.tasks.GSM8K, init_args: {data_files: ['~/t.jsonl']}}\n"
    )
    options = build_parser().parse_args(["--config=~/task.yaml", "--adapter=~/run", "--base", "~/base", "--out=~/out"])
    assert (options.adapter, options.base, options.out) == (f"{home}/run", f"{home}/base", f"{home}/out")
    assert options.evaluation.task.init_args.data_files == [f"{home}/t.jsonl"]


def test_options_of_a_run_are_expanded_in_arguments_and_files(home) -> None:
    (home / "mine.yaml").write_text("include: [~/other.yaml]\nmodel: {base: ~/base}\nckpt_path: ~/step=1.ckpt\n")
    (home / "other.yaml").write_text(
        "data: {dataset: {class_path: cera.data.ChatDataset, init_args: {data_files: ~/c.jsonl}}}"
    )
    recipe = f"--config={REPOSITORY}/configs/parts/recipe.yaml"
    adapter = f"--config={REPOSITORY}/configs/adapters/cera.yaml"
    config = training_parser().parse_args([recipe, adapter, "--config=~/mine.yaml", "--runs=~/runs"])
    assert config.model.base == config.data.tokenizer == f"{home}/base"
    assert config.data.dataset.init_args.data_files == f"{home}/c.jsonl"
    assert (config.runs, config.ckpt_path) == (f"{home}/runs", f"{home}/step=1.ckpt")


def test_a_run_goes_below_the_home_directory_and_keeps_its_path(home, tiny_llama, monkeypatch, capsys) -> None:
    options = ["--runs=~/kept/runs", "--model.base=~/tiny", "--print_config"]
    (home / "tiny").symlink_to(tiny_llama)
    status, printed = run_here(monkeypatch, capsys, [*command("unused", Path("unused")), *options])
    assert status == 0
    config = yaml.safe_load(printed)
    assert config["runs"] == f"{home}/kept/runs"
    assert config["model"]["base"] == f"{home}/tiny"


@pytest.mark.parametrize("value", ["", "a\0b", "x" * 300, "/tmp/" + "\u00e9" * 200 + "/a", "/tmp" * 1000 + "/a"])
def test_a_path_that_no_file_can_have_is_refused(value) -> None:
    with pytest.raises(ValueError, match=r"runs must be a path, got"):
        with_home(value, "runs")
    assert with_home(value, "system") == value


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/a", "a\0", "a b", ".a", "-a", "x" * 201, "\u00e9" * 101, "a\n"]
)
def test_a_name_that_is_no_name_is_refused_wherever_it_becomes_a_directory(tmp_path, name) -> None:
    for refused in (
        lambda: check_name(name, "name"),
        lambda: choose(tmp_path, name, resume=False),
        lambda: Evaluation(GSM8K("test.jsonl"), name=name),
    ):
        with pytest.raises(ValueError, match=r"name must (be of letters|have at most 200 bytes)") as refusal:
            refused()
        assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("name", ["run", "run-1", "cera.r=64+dora", "\u00fcbung", "x" * 200, "1"])
def test_names_of_directories(tmp_path, name) -> None:
    check_name(name, "name")
    (tmp_path / f"{name}@2").mkdir()
