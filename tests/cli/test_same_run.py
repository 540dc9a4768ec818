"""Each setting must agree on resume, is free, or is the same by design; the documentation has the table."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from command_line import command, losses, run_here
from conftest import REPOSITORY

from cera.cli.same_run import RULES, Kind, differing_settings, settings_table

NAMES = {kind: [name for rule in RULES for name in rule.names if rule.kind is kind] for kind in Kind}
AS_STARTED = ("--name=cera", "--trainer.max_steps=12", "--trainer.num_sanity_val_steps=-1")

CHANGED = {
    "model.base": ["--model.base={other}"],
    "model.adapter": ["--model.adapter.init_args.r=4"],
    "model.learning_rate": ["--model.learning_rate=0.02"],
    "model.weight_decay": ["--model.weight_decay=0.1"],
    "model.betas": ["--model.betas=[0.8, 0.99]"],
    "model.warmup": ["--model.warmup=0.5"],
    "model.schedule": ["--model.schedule=constant"],
    "model.loss_mean": ["--model.loss_mean=micro_batch"],
    "model.quantization": ["--model.quantization=nf4"],
    "model.adapter_dtype": ["--model.adapter_dtype=float32", "--trainer.precision=32-true"],
    "trainer.gradient_clip_val": ["--trainer.gradient_clip_val=1.0"],
    "trainer.gradient_clip_algorithm": ["--trainer.gradient_clip_val=1.0", "--trainer.gradient_clip_algorithm=value"],
    "trainer.max_steps": ["--trainer.max_steps=24"],
    "trainer.max_epochs": ["--trainer.max_steps=-1", "--trainer.max_epochs=1"],
    "trainer.limit_train_batches": [
        "--trainer.max_steps=-1", "--trainer.max_epochs=1", "--trainer.limit_train_batches=12"
    ],
    "trainer.accumulate_grad_batches": ["--trainer.accumulate_grad_batches=2"],
    "trainer.precision": ["--trainer.precision=bf16-mixed"],
    "trainer.strategy": ["--trainer.strategy=cera.training.DeepSpeed"],
    "trainer.limit_val_batches": ["--trainer.limit_val_batches=1"],
    "trainer.callbacks": [
        "--trainer.callbacks=[]", "--trainer.callbacks+=cera.callbacks.SpectralTracker", "--trainer.callbacks.batches=1"
    ],
    "seed_everything": ["--seed_everything=7"],
    "data.dataset": ["--data.dataset.init_args.size=61"],
    "data.validation": ["--data.validation=cera.data.ReasoningGymWordProblems", "--data.validation.init_args.size=8"],
    "data.validation_rows": ["--data.validation_rows=9"],
    "data.max_length": ["--data.max_length=128"],
    "data.overlong": ["--data.overlong=drop"],
    "data.packing": ["--data.packing=false"],
    "data.shuffle_buffer": ["--data.shuffle_buffer=10"],
    "data.template": ["--data.template=Q: {{question}} A: {{answer}}"],
    "data.loss_on": ["--data.loss_on=all"],
    "data.loss_on_end": ["--data.loss_on_end=false"],
    "data.with_replacement": ["--data.with_replacement=true"],
    "data.batch_size": ["--data.batch_size=3"],
}  # fmt: skip
"""For each setting that must agree, another value; ``{other}`` is another model."""


@pytest.fixture
def runs(two_runs, tmp_path) -> Path:
    """A copy of the finished run ``cera``, of 12 steps."""
    shutil.copytree(two_runs / "cera", tmp_path / "runs" / "cera")
    return tmp_path / "runs"


@pytest.fixture
def call(tiny_llama, monkeypatch, capsys):
    """Run ``cera train`` on the runs in a folder as the run ``cera`` was started; returns (status, output)."""

    def call(runs: Path, *options: str, subcommand: str = "fit") -> tuple[int, str]:
        arguments = command(tiny_llama, runs, *AS_STARTED, *options)
        return run_here(monkeypatch, capsys, [*arguments[:2], subcommand, *arguments[2:]])

    return call


def content(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def error(printed: str) -> str:
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in printed
    assert "Loading weights" not in printed
    return line


def test_every_setting_has_one_rule(monkeypatch, capsys) -> None:
    _, printed = run_here(monkeypatch, capsys, ["", "", "--config=configs/smol_cera.yaml", "--print_config"])
    config = yaml.safe_load(printed)
    settings = [name for name in config if name not in ("trainer", "model", "data")]
    settings += [f"{group}.{name}" for group in ("trainer", "model", "data") for name in config[group]]
    assert sorted(name for rule in RULES for name in rule.names) == sorted(settings)


def test_the_documentation_has_the_table() -> None:
    assert settings_table() in (REPOSITORY / "docs" / "training.md").read_text()


def test_each_setting_that_must_agree_is_tried_here() -> None:
    elsewhere = {"trainer.devices", "trainer.num_nodes"}  # in the tests of the product, below
    assert CHANGED.keys() | elsewhere == set(NAMES[Kind.IDENTITY])


@pytest.mark.parametrize("name", CHANGED)
def test_another_value_of_a_setting_that_must_agree_is_one_line(runs, tiny_llama, tmp_path, call, name) -> None:
    other = tmp_path / "other_llama"
    other.symlink_to(tiny_llama)
    before = content(runs)
    options = [option.format(other=other) for option in CHANGED[name]]
    status, printed = call(runs, "--ckpt_path=last", *options)
    assert status == 2, printed
    assert name in error(printed)
    assert content(runs) == before


FREE = {
    "trainer.accelerator": "auto", "trainer.benchmark": "false", "trainer.deterministic": "true",
    "model.gradient_checkpointing": "true", "model.compile_layers": "false", "model.attn_implementation": "sdpa",
    "trainer.val_check_interval": 6, "trainer.num_sanity_val_steps": 0, "trainer.check_val_every_n_epoch": "null",
    "trainer.log_every_n_steps": 2, "checkpoint_every": 5, "trainer.enable_checkpointing": "true",
    "trainer.max_time": "00:01:00:00", "trainer.min_steps": 1, "trainer.min_epochs": 1,
    "trainer.logger": "null", "trainer.enable_progress_bar": "false", "trainer.enable_model_summary": "true",
    "trainer.profiler": "simple", "trainer.detect_anomaly": "true", "trainer.inference_mode": "false",
    "trainer.plugins": "lightning.pytorch.plugins.environments.LightningEnvironment", "answer_tokens": 1,
    "data.num_workers": 1, "data.max_malformed": 0.5, "data.tokenize_once": "true", "model.max_new_tokens": 3,
    "trainer.limit_test_batches": 1,
    "trainer.limit_predict_batches": 1, "evaluation": "null", "ckpt_path": "last", "weights_only": "true",
    "reuse": "nowhere",
}  # fmt: skip
"""Other values of the settings that are free."""


def test_free_settings_change_no_number_of_a_resumed_run(two_runs, tmp_path, call) -> None:
    assert FREE.keys() == set(NAMES[Kind.FREE])
    halfway = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=6"]  # with max_steps these only end the run
    status, printed = call(tmp_path, *halfway)
    assert status == 0, printed
    run = tmp_path / "cera"
    assert max(losses(run)) == 5
    without_bars = ["--trainer.callbacks=[]", "--trainer.callbacks+=cera.callbacks.DivergenceGuard"]
    status, printed = call(tmp_path, *(f"--{name}={value}" for name, value in FREE.items()), *without_bars)
    assert status == 0, printed
    whole = losses(two_runs / "cera")
    assert losses(run) == pytest.approx({step: whole[step] for step in (0, 1, 2, 3, 4, 5, 7, 9, 11)}, rel=1e-5)
    assert losses(run, "val/perplexity")[11] == pytest.approx(losses(two_runs / "cera", "val/perplexity")[11], rel=1e-5)


SAME_MEANING = [
    ("model.base", "models/tiny", "/home/me/models/tiny", "models/large"),
    ("trainer.precision", None, "32-true", "bf16-true"),
    ("trainer.precision", 16, "16-mixed", "16-true"),
    ("trainer.strategy", "auto", "ddp", {"class_path": "cera.training.DeepSpeed"}),
    (
        "trainer.strategy",
        {"class_path": "cera.training.DeepSpeed"},
        {"class_path": "cera.training.DeepSpeed", "init_args": {"stage": 2, "loss_scale": 1.0}},
        {"class_path": "cera.training.DeepSpeed", "init_args": {"stage": 3}},
    ),
    (
        "model.adapter",
        {"class_path": "cera.CeraConfig", "init_args": {"target_modules": ["q_proj", "v_proj"]}},
        {"class_path": "cera.CeraConfig", "init_args": {"target_modules": ["v_proj", "q_proj"], "added_later": 1}},
        {"class_path": "cera.CeraConfig", "init_args": {"target_modules": ["q_proj"]}},
    ),
    (
        "data.dataset",
        {"class_path": "cera.data.ChatDataset", "init_args": {"data_files": ["a/chats.jsonl"]}},
        {"class_path": "cera.data.ChatDataset", "init_args": {"data_files": ["/b/a/chats.jsonl"]}},
        {"class_path": "cera.data.ChatDataset", "init_args": {"data_files": ["a/other.jsonl"]}},
    ),
    (
        "trainer.callbacks",
        [{"class_path": "cera.callbacks.SpectralTracker", "init_args": {"batches": 2}}],
        [{"class_path": "cera.callbacks.Dashboard"}],
        [{"class_path": "cera.callbacks.SpectralTracker", "init_args": {"batches": 3}}],
    ),
]


@pytest.mark.parametrize(("name", "value", "same", "other"), SAME_MEANING)
def test_spellings_of_one_meaning_agree(name, value, same, other) -> None:
    def config(value) -> dict:
        group, _, key = name.partition(".")
        return {group: {key: value}}

    assert differing_settings(config(value), config(same)) == []
    (line,) = differing_settings(config(value), config(other))
    assert line.startswith(name)
    assert differing_settings({}, config(other)) == []  # a setting that is newer than the run


def test_the_length_of_an_epoch_is_free_if_the_schedule_spans_steps() -> None:
    def config(max_steps: int, **trainer: int | None) -> dict:
        return {"trainer": {"max_steps": max_steps, **trainer}}

    assert differing_settings(config(9, max_epochs=1), config(9, max_epochs=2)) == []
    assert differing_settings(config(-1, max_epochs=1), config(-1, max_epochs=2)) == [
        "trainer.max_epochs: 1 there, 2 here"
    ]


def test_rows_of_a_step_may_be_divided_otherwise(runs, call) -> None:
    record, file = runs / "cera" / "environment.json", runs / "cera" / "config.yaml"
    record.write_text(json.dumps({**json.loads(record.read_text()), "world_size": 2}))
    status, printed = call(runs, "--ckpt_path=last")  # 2 rows on each of 2 processes, then 2 on one
    assert status == 2, printed
    assert "rows of a step: 2 x 1 x 2 = 4 there, 2 x 1 x 1 = 2 here" in error(printed)
    file.write_text(file.read_text().replace("batch_size: 2", "batch_size: 1"))
    assert call(runs, "--ckpt_path=last")[0] == 0  # 1 row on each of 2 processes, then 2 on one
    status, printed = call(runs, "--ckpt_path=last", "--trainer.strategy=cera.training.DeepSpeed")
    assert status == 2
    assert "trainer.strategy" in error(printed)


def test_a_checkpoint_without_its_run_checks_what_its_state_depends_on(runs, tmp_path, call) -> None:
    alone = tmp_path / "step=12.ckpt"
    shutil.copy(runs / "cera" / "checkpoints" / "step=12.ckpt", alone)
    for option, expected in (
        ("--trainer.max_steps=24", "max_steps: 12 there, 24 here"),
        ("--trainer.accumulate_grad_batches=2", "data.rows_of_a_step: 2 there, 4 here"),
        ("--data.batch_size=3", "data.rows_of_a_step: 2 there, 3 here"),
    ):
        status, printed = call(tmp_path / "new", f"--ckpt_path={alone}", option)
        assert status == 2, printed
        assert expected in printed
    checkpoint = torch.load(alone, weights_only=True)
    for part, names in (("cera", ("max_steps",)), ("ChatData", ("validation", "rows_of_a_step"))):
        identity = json.loads(checkpoint[part]["identity"])
        checkpoint[part]["identity"] = json.dumps({k: v for k, v in identity.items() if k not in names})
    torch.save(checkpoint, alone)  # as an earlier version saved it
    assert call(tmp_path / "new", f"--ckpt_path={alone}")[0] == 0


def test_a_run_that_starts_again_keeps_its_settings(runs, call) -> None:
    shutil.rmtree(runs / "cera" / "checkpoints")
    status, printed = call(runs, "--ckpt_path=last", "--model.learning_rate=0.02")
    assert status == 2
    assert "model.learning_rate: 0.01 there, 0.02 here" in error(printed)


def test_a_damaged_configuration_is_one_line(runs, call) -> None:
    (runs / "cera" / "config.yaml").write_text("model: [")
    status, printed = call(runs, "--ckpt_path=last")
    assert status == 2
    assert "cera is not a run directory" in error(printed)


MEASURING = [
    (0, ["--model.learning_rate=0.5", "--trainer.max_steps=3", "--trainer.precision=bf16-true", "--seed_everything=7"]),
    (0, ["--data.batch_size=1", "--data.max_length=192"]),
    (0, ["--data.validation=cera.data.ReasoningGymWordProblems", "--data.validation.init_args.size=4"]),
    (2, ["--model.adapter.init_args.r=4"]),
    (2, ["--data.validation_rows=9"]),  # of which one was trained on
    (2, ["--data.dataset.init_args.size=61"]),
]


@pytest.mark.parametrize(("expected", "options"), MEASURING)
def test_what_is_measured_needs_the_adapter_and_the_held_out_rows_of_the_run(runs, call, expected, options) -> None:
    status, printed = call(runs, *options, subcommand="validate")
    assert status == expected, printed
    if expected == 2:
        assert options[0].partition("=")[0].removeprefix("--") in error(printed)
