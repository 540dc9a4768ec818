"""Every argument of Lightning's Trainer: refused in one line before anything is loaded, or supported and tried here."""

import inspect

import pytest
import yaml
from command_line import command, losses, run_here
from conftest import REPOSITORY
from lightning import Trainer

from cera.cli.trainer_arguments import RANGES, REFUSALS

ARGUMENTS = set(inspect.signature(Trainer.__init__).parameters) - {"self"}


def test_every_argument_of_the_trainer_is_listed_once() -> None:
    assert RANGES.keys() | REFUSALS.keys() == ARGUMENTS
    assert not RANGES.keys() & REFUSALS.keys()


def test_every_argument_is_in_the_documentation() -> None:
    text = (REPOSITORY / "docs" / "training.md").read_text()
    assert {argument for argument in ARGUMENTS if f"`{argument}`" not in text} == set()


def test_the_defaults_are_lightnings() -> None:
    defaults = {name: p.default for name, p in inspect.signature(Trainer.__init__).parameters.items()}
    assert {name: refusal.default for name, refusal in REFUSALS.items()} == {name: defaults[name] for name in REFUSALS}
    assert all(allowed.contains(defaults[name]) for name, allowed in RANGES.items())


@pytest.mark.parametrize(
    ("options", "field", "advice"),
    [
        ("--trainer.accumulate_grad_batches=0", "accumulate_grad_batches", "1 or more, got 0"),
        ("--trainer.accumulate_grad_batches=-1", "accumulate_grad_batches", "1 or more, got -1"),
        ("--trainer.val_check_interval=0.5", "val_check_interval", "number of micro-batches"),
        ("--trainer.val_check_interval=0.5 --trainer.check_val_every_n_epoch=1", "val_check_interval", "got 0.5"),
        ("--trainer.val_check_interval=0", "val_check_interval", "1 or more"),
        ("--trainer.val_check_interval=1.0", "val_check_interval", "check_val_every_n_epoch is null"),
        ("--trainer.val_check_interval=00:00:10:00", "val_check_interval", "got 00:00:10:00"),
        (
            "--trainer.val_check_interval=9 --trainer.limit_train_batches=4 --trainer.check_val_every_n_epoch=1",
            "val_check_interval",
            "check_val_every_n_epoch=null",
        ),
        ("--trainer.check_val_every_n_epoch=0", "check_val_every_n_epoch", "1 or more"),
        ("--trainer.limit_train_batches=0", "limit_train_batches", "1 or more"),
        ("--trainer.limit_train_batches=0.0", "limit_train_batches", "1 or more"),
        ("--trainer.limit_train_batches=0.5", "limit_train_batches", "got 0.5"),
        ("--trainer.limit_train_batches=.nan", "limit_train_batches", "got nan"),
        ("--trainer.limit_train_batches=4 --trainer.accumulate_grad_batches=3", "limit_train_batches", "multiple of"),
        ("--trainer.limit_val_batches=0.25", "limit_val_batches", "got 0.25"),
        ("--trainer.limit_val_batches=-1", "limit_val_batches", "got -1"),
        ("--trainer.limit_test_batches=0.5", "limit_test_batches", "0 or more"),
        ("--trainer.limit_predict_batches=-2", "limit_predict_batches", "0 or more"),
        ("--trainer.max_steps=0", "max_steps", "positive"),
        ("--trainer.max_steps=-2", "max_steps", "got -2"),
        ("--trainer.max_epochs=0", "max_epochs", "1 or more"),
        ("--trainer.min_steps=9 --trainer.max_steps=8", "min_steps=9", "max_steps=8"),
        ("--trainer.min_epochs=3 --trainer.max_epochs=2", "min_epochs=3", "max_epochs=2"),
        ("--trainer.num_sanity_val_steps=-2", "num_sanity_val_steps", "-1 for all"),
        ("--trainer.log_every_n_steps=0", "log_every_n_steps", "1 or more"),
        ("--trainer.gradient_clip_val=-1", "gradient_clip_val", "got -1"),
        ("--trainer.gradient_clip_val=.inf", "gradient_clip_val", "got inf"),
        ("--trainer.gradient_clip_val=1 --trainer.gradient_clip_algorithm=size", "gradient_clip_algorithm", "value"),
        ("--trainer.gradient_clip_algorithm=value", "gradient_clip_algorithm", "gradient_clip_val"),
        ("--trainer.accelerator=tpu", "accelerator", "cpu"),
        ("--trainer.strategy=fsdp", "strategy", "cera.training.DeepSpeed"),
        ("--trainer.strategy=deepspeed_stage_2", "strategy", "cera.training.DeepSpeed"),
        ("--trainer.strategy=ddp_spawn", "strategy", "ddp"),
        ("--trainer.strategy=lightning.pytorch.strategies.FSDPStrategy", "strategy", "cera.training.DeepSpeed"),
        ("--trainer.devices=0", "devices", "1 or more"),
        ("--trainer.devices=1000000000000000000000000000000", "devices", "to 1024"),
        ("--trainer.max_steps=1000000000000000000000000000000", "max_steps", "positive"),
        ("--trainer.num_nodes=0", "num_nodes", "1 or more"),
        ("--trainer.num_nodes=2", "num_nodes", "torchrun"),
        ("--trainer.precision=64-true", "precision", "bf16-true"),
        ("--trainer.precision=transformer-engine", "precision", "model.quantization"),
        ("--trainer.profiler=xla", "profiler", "simple"),
        ("--trainer.max_time=3", "max_time", "DD:HH:MM:SS"),
        ("--trainer.max_time=00:00:00:00", "max_time", "a second or more"),
        ("--trainer.default_root_dir=elsewhere", "default_root_dir", "--runs and --name"),
        ("--trainer.plugins=lightning.pytorch.plugins.io.TorchCheckpointIO", "plugins", "checkpoints"),
        ("--trainer.plugins=lightning.pytorch.plugins.precision.DoublePrecision", "plugins", "trainer.precision"),
        ("--trainer.fast_dev_run=true", "fast_dev_run", "trainer.max_steps=1"),
        ("--trainer.overfit_batches=1", "overfit_batches", "trainer.max_epochs"),
        ("--trainer.use_distributed_sampler=false", "use_distributed_sampler", "stream"),
        ("--trainer.barebones=true", "barebones", "benchmarks"),
        ("--trainer.sync_batchnorm=true", "sync_batchnorm", "leave it unset"),
        ("--trainer.reload_dataloaders_every_n_epochs=1", "reload_dataloaders_every_n_epochs", "leave it unset"),
        ("--trainer.enable_autolog_hparams=false", "enable_autolog_hparams", "config.yaml"),
        ("--trainer.model_registry=mine", "model_registry", "hf upload"),
        ("--seed_everything=-1", "seed_everything", "from 0 to 4294967295"),
        ("--seed_everything=1099511627776", "seed_everything", "from 0 to 4294967295"),
        ("--seed_everything=true", "seed_everything", "whole number"),
    ],
)
def test_what_is_not_supported_is_one_line_before_anything_is_loaded(
    tiny_llama, tmp_path, monkeypatch, capsys, options, field, advice
):
    monkeypatch.delenv("NODE_RANK", raising=False)
    status, printed = run_here(monkeypatch, capsys, [*command(tiny_llama, tmp_path), *options.split()])
    assert status == 2, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert field in line
    assert advice in line
    assert "Traceback" not in printed
    assert "Loading weights" not in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_a_subcommand_with_no_batches_is_refused(tiny_llama, tmp_path, monkeypatch, capsys, subcommand):
    limit = {"validate": "val"}.get(subcommand, subcommand)
    arguments = command(tiny_llama, tmp_path, f"--trainer.limit_{limit}_batches=0")
    status, printed = run_here(monkeypatch, capsys, [*arguments[:2], subcommand, *arguments[2:]])
    assert status == 2
    assert f"error: trainer.limit_{limit}_batches must be 1 or more" in printed


def fit(tiny_llama, tmp_path, monkeypatch, capsys, *options: str) -> str:
    status, printed = run_here(monkeypatch, capsys, command(tiny_llama, tmp_path, *options))
    assert status == 0, printed
    return printed


def test_epochs_limits_and_checks_are_supported(tiny_llama, tmp_path, monkeypatch, capsys):
    options = {
        "max_steps": -1, "max_epochs": 2, "min_epochs": 1, "min_steps": 1, "limit_train_batches": 4,
        "limit_val_batches": 2, "limit_test_batches": 1, "limit_predict_batches": 1, "check_val_every_n_epoch": 1,
        "val_check_interval": "1.0", "num_sanity_val_steps": 1, "log_every_n_steps": 2, "num_nodes": 1,
        "deterministic": "true", "benchmark": "false", "inference_mode": "false", "detect_anomaly": "true",
        "profiler": "simple", "enable_model_summary": "true", "enable_progress_bar": "false", "devices": 1,
        "gradient_clip_val": 0.5, "gradient_clip_algorithm": "value", "accumulate_grad_batches": 2,
        "plugins": "lightning.pytorch.plugins.environments.LightningEnvironment", "strategy": "auto",
    }  # fmt: skip
    fit(tiny_llama, tmp_path, monkeypatch, capsys, *(f"--trainer.{name}={value}" for name, value in options.items()))
    # two epochs of two steps, each logged at its second step and validated at its end
    assert list(losses(tmp_path / "test")) == [1, 3]
    assert list(losses(tmp_path / "test", "val/loss")) == [1, 3]
    recorded = yaml.safe_load((tmp_path / "test" / "config.yaml").read_text())["trainer"]
    assert recorded["limit_train_batches"] == 4
    assert recorded["gradient_clip_algorithm"] == "value"


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "16-true"])
def test_precisions_with_clipping_are_supported(tiny_llama, tmp_path, monkeypatch, capsys, precision):
    options = ["--trainer.max_steps=2", "--trainer.gradient_clip_val=1.0", "--trainer.limit_val_batches=0"]
    fit(tiny_llama, tmp_path, monkeypatch, capsys, f"--trainer.precision={precision}", *options)
    assert len(losses(tmp_path / "test")) == 2


def test_a_run_that_max_time_ends_is_saved(tiny_llama, tmp_path, monkeypatch, capsys):
    options = ["--trainer.max_time=00:00:00:01", "--trainer.max_steps=100000", "--trainer.limit_val_batches=0"]
    fit(tiny_llama, tmp_path, monkeypatch, capsys, *options)
    steps = list(losses(tmp_path / "test"))
    assert 0 < len(steps) < 10000
    assert (tmp_path / "test" / "checkpoints" / f"step={steps[-1] + 1}.ckpt").is_file()
    assert (tmp_path / "test" / "adapter" / "adapter_model.safetensors").is_file()


def test_lightnings_callbacks_and_no_checkpoints_are_supported(tiny_llama, tmp_path, monkeypatch, capsys):
    early = ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    patience = ["--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=1000", "--trainer.max_steps=100"]
    off = ["--trainer.enable_checkpointing=false", "--trainer.val_check_interval=2"]
    fit(tiny_llama, tmp_path, monkeypatch, capsys, *early, *patience, *off)
    assert list(losses(tmp_path / "test")) == [0, 1, 2, 3]  # the second validation is no better by 1000
    assert not (tmp_path / "test" / "checkpoints").exists()
    assert (tmp_path / "test" / "adapter").is_dir()


def test_the_directory_in_another_runs_configuration_is_replaced(tiny_llama, tmp_path, monkeypatch, capsys):
    short = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    fit(tiny_llama, tmp_path, monkeypatch, capsys, *short)
    recorded = str(tmp_path / "test" / "config.yaml")
    monkeypatch.delenv("CERA_RUN_DIR", raising=False)
    status, printed = run_here(monkeypatch, capsys, ["", "", "--config", recorded, "--name=again"])
    assert status == 0, printed
    assert (tmp_path / "again" / "config.yaml").is_file()


def test_what_lightning_finds_misconfigured_while_running_is_one_line(tiny_llama, tmp_path, monkeypatch, capsys):
    options = ["--trainer.max_steps=1", "--trainer.callbacks+=probes.Misconfigured", "--trainer.limit_val_batches=0"]
    monkeypatch.syspath_prepend(str(REPOSITORY / "tests"))
    status, printed = run_here(monkeypatch, capsys, command(tiny_llama, tmp_path, *options))
    assert status == 2, printed
    assert "error: a setting that only a run can judge" in printed
