"""Labels tell runs apart by every setting in which they differ."""

import copy
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from cera.runs.finished import FinishedRun
from cera.runs.settings import config_labels, flat_settings, run_labels
from cera.studies.compare import comparison_rows

EARLIER = REPOSITORY / "tests" / "fixtures" / "earlier"
CERA = {"class_path": "cera.CeraConfig", "init_args": {"r": 64, "scaling": 1.0, "rank_pattern": {}}}
LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 64, "lora_alpha": 128}}


def config(adapter: dict = CERA, **changes: object) -> dict:
    """A configuration; ``changes`` are by dotted name, with two underscores for the dot."""
    made = {
        "seed_everything": 1,
        "model": {"base": "some/model", "adapter": adapter, "learning_rate": 3e-4, "betas": [0.9, 0.999]},
        "data": {
            "dataset": {"class_path": "cera.data.GSM8KSolutions", "init_args": {"split": "train"}},
            "batch_size": 4,
        },
        "trainer": {"max_steps": 100, "gradient_clip_val": None, "default_root_dir": "runs/a"},
        "name": "a",
    }
    made = copy.deepcopy(made)
    for name, value in changes.items():
        *groups, key = name.split("__")
        place = made
        for group in groups:
            place = place[group]
        place[key] = value
    return made


def test_flat_settings_have_the_names_of_the_command_line_without_model():
    assert flat_settings(config()) == {
        "base": "some/model",
        "adapter": "CeraConfig",
        "adapter.r": 64,
        "adapter.scaling": 1.0,
        "adapter.rank_pattern": "{}",
        "learning_rate": 3e-4,
        "betas": "[0.9, 0.999]",
        "data.dataset": "GSM8KSolutions",
        "data.dataset.split": "train",
        "data.batch_size": 4,
        "trainer.max_steps": 100,
        "trainer.gradient_clip_val": None,
        "seed": 1,
    }


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"model__adapter__init_args__scaling": 4.0}, ("scaling=1.0", "scaling=4.0")),
        ({"model__adapter__init_args__rank_pattern": {"q_proj": 8}}, ("rank_pattern={}", 'rank_pattern={"q_proj": 8}')),
        ({"model__learning_rate": 1e-3}, ("learning_rate=0.0003", "learning_rate=0.001")),
        ({"seed_everything": 2}, ("seed=1", "seed=2")),
        ({"data__dataset__init_args__split": "test"}, ("data.dataset.split=train", "data.dataset.split=test")),
        ({"trainer__gradient_clip_val": 1.0}, ("trainer.gradient_clip_val=None", "trainer.gradient_clip_val=1.0")),
        (
            {"seed_everything": 2, "model__adapter__init_args__scaling": 4.0},
            ("scaling=1.0, seed=1", "scaling=4.0, seed=2"),
        ),
    ],
)
def test_runs_that_differ_have_the_setting_in_their_labels(changes, shown):
    assert config_labels([config(), config(**changes)]) == [f"CeRA r=64, {settings}" for settings in shown]


def test_what_does_not_change_the_training_is_in_no_label():
    other = config(name="b", trainer__default_root_dir="runs/b", trainer__logger={"class_path": "some.Logger"})
    assert config_labels([config(), other]) == ["CeRA r=64", "CeRA r=64"]


def test_other_adapters_have_other_settings_and_these_are_no_difference():
    assert config_labels([config(), config(LORA)]) == ["CeRA r=64", "LoRA r=64"]
    wide = {**CERA, "init_args": {**CERA["init_args"], "scaling": 4.0}}
    labels = config_labels([config(), config(wide), config(LORA)])
    assert labels == ["CeRA r=64, scaling=1.0", "CeRA r=64, scaling=4.0", "LoRA r=64"]
    earlier = {**CERA, "init_args": {"r": 64}}  # of a version that had no other arguments
    assert config_labels([config(), config(earlier)]) == ["CeRA r=64", "CeRA r=64"]


@pytest.mark.parametrize("path", sorted(EARLIER.glob("*/config.yaml")), ids=lambda path: path.parent.name)
def test_no_setting_of_a_real_configuration_is_left_out(path):
    """A change of any of them is in the label, under its name."""
    made = yaml.safe_load(path.read_text())
    names = set(flat_settings(made))
    assert {"adapter.r", "learning_rate", "warmup", "data.batch_size", "trainer.max_steps"} <= names
    for group in ("model", "data"):
        for key, value in made[group].items():
            if isinstance(value, dict) or key in ("max_new_tokens", "num_workers"):
                continue
            other = copy.deepcopy(made)
            other[group][key] = "changed"
            name = key if group == "model" else f"data.{key}"
            first, second = config_labels([made, other])
            assert second.endswith(f"{name}=changed")
            assert first != second
    for key, value in made["model"]["adapter"]["init_args"].items():
        other = copy.deepcopy(made)
        other["model"]["adapter"]["init_args"][key] = not value if isinstance(value, bool) else "changed"
        assert key in PEFT_BOOKKEEPING or len(set(config_labels([made, other]))) == 2


PEFT_BOOKKEEPING = (
    "task_type", "peft_type", "auto_mapping", "peft_version", "inference_mode", "base_model_name_or_path", "revision"
)  # fmt: skip


def test_the_comparison_has_a_row_for_each_scale_by_name(tmp_path: Path):
    for name, scaling in (("one", 1.0), ("four", 4.0)):
        (tmp_path / name).mkdir()
        made = config(model__adapter__init_args__scaling=scaling)
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(made))
    runs = [FinishedRun.read(tmp_path / name) for name in ("one", "four")]
    assert run_labels(runs) == ["CeRA r=64, scaling=1.0", "CeRA r=64, scaling=4.0"]
    assert [row.adapter for row in comparison_rows(runs)] == run_labels(runs)
