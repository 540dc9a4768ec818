"""A small share of what ``fuzz.py`` does; the slow tests are a larger one."""

import copy
import functools
import operator
import re

import pytest
import yaml
from fuzz import KINDS, fuzz
from fuzzing.configs import Configs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "seeds", [range(40), pytest.param(range(40, 500), marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_random_inputs_are_taken_or_refused_in_one_line(kind, seeds, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    run = KINDS[kind](tiny_llama, tmp_path)
    outcome = fuzz(kind, run, run.longest_seconds, seeds)
    assert outcome.failures == {}
    if kind != "answers":  # which are never refused
        assert min(outcome.taken, outcome.refused) > 1  # the inputs reach both


@pytest.fixture(scope="module")
def configs(tiny_llama, tmp_path_factory):
    return Configs(tiny_llama, tmp_path_factory.mktemp("configs"))


@pytest.mark.parametrize(
    ("is_run", "setting", "value", "error"),
    [
        (True, "model.adapter.init_args.r", 10**9, "model.adapter: CeraConfig cannot be applied to .*memory"),
        (True, "model.adapter", {"class_path": "cera.CeraConfig", 5: 6}, "Key must be a string, got: 5"),
        (False, "evaluation.task", {"class_path": "cera.evaluation.tasks.MATH", 5: 6}, "Key must be a string, got: 5"),
        (False, "evaluation.sampling", [-1], "configuration cannot be used: .*mapping"),
        (True, "trainer.devices", 10**30, "trainer.devices"),
        (True, "trainer", ["x"], "trainer must be a mapping of settings"),
        (True, "trainer.check_val_every_n_epoch", "q_proj", "check_val_every_n_epoch.*q_proj"),
        (True, "trainer.callbacks", [{"class_path": {}}], "trainer.callbacks"),
        (
            True,
            "trainer.accelerator",
            "gpu",
            "this machine lacks a CUDA GPU .*; access to the Hugging.*[.] configs/smol_cera",
        ),
    ],
)
def test_configurations_that_fuzzing_came_upon_end_in_one_line(configs, is_run, setting, value, error):
    config = copy.deepcopy(configs.run if is_run else configs.evaluation)
    *parents, last = setting.split(".")
    functools.reduce(operator.getitem, parents, config)[last] = value
    if value == "gpu":
        config["model"]["base"] = "no/model"
    line = configs.parse(is_run, yaml.safe_dump(config), [])
    assert re.search(f"^error: .*{error}", line)


def test_a_callback_of_lightning_with_a_default_of_its_own_type_is_taken(configs):
    config = copy.deepcopy(configs.run)
    config["trainer"]["callbacks"].append(
        {"class_path": "lightning.pytorch.callbacks.Timer"}
    )  # interval: Interval.step
    assert configs.parse(True, yaml.safe_dump(config), []) == ""


def test_failures_are_reported():
    def fail(rng):
        raise KeyError("x")

    assert "KeyError" in fuzz("rows", fail, 1.0, [3]).failures[3]
    assert "several lines" in fuzz("rows", lambda rng: "error: a\nb", 1.0, [3]).failures[3]
    assert "took" in fuzz("rows", lambda rng: "", 0.0, [3]).failures[3]
    assert fuzz("rows", lambda rng: "error: a", 1.0, [3]).refused == 1
