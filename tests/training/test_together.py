"""Runs that are trained together equal those that are trained apart: losses, adapters, divergence, resume."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from command_line import environment, losses
from conftest import REPOSITORY
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from peft import IA3Config, LoraConfig
from safetensors.torch import load_file
from transformers import GPT2Config, LlamaConfig

from cera import CeraConfig
from cera.cli import train, train_together
from cera.training import CausalLM
from cera.training.together import Together, random_base, reason_apart, shared_settings

STEPS = 50
TOLERANCE = 1e-5
"""Of the losses of fp32 runs, relative."""

RUNS = {"a": (1e-3, 0), "b": (3e-3, 1), "c": (1e-2, 2)}
"""Learning rate and seed by name."""

CALLBACKS = [{"class_path": f"cera.callbacks.{name}"} for name in ("SpectralTracker", "DivergenceGuard")]
LORA = ["--model.adapter.init_args.lora_dropout=0.1", "--model.adapter.init_args.lora_alpha=8"]
DIVERGING = "d"
HYPERPARAMETERS = {**RUNS, DIVERGING: (1e39, 3)}


class Stop(Callback):
    """Sends this process SIGTERM in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_at(step: int) -> tuple[str, str]:
    return "--trainer.callbacks+=test_together.Stop", f"--trainer.callbacks.init_args.step={step}"


class Kill(Callback):
    """Sends this process SIGKILL in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def arguments(base: str, runs: Path, method: str, name: str, *more: str) -> list[str]:
    rate, seed = HYPERPARAMETERS[name]
    return [
        "fit", f"--config={REPOSITORY / 'configs' / f'smol_{method}.yaml'}", f"--model.base={base}", f"--runs={runs}",
        f"--name={name}", "--model.adapter.init_args.r=4", "--trainer.precision=32-true", "--data.batch_size=1",
        *(["--model.adapter.init_args.dropout=0.1"] if method == "cera" else LORA),
        f"--model.learning_rate={rate}", f"--seed_everything={seed}", "--data.dataset.init_args.size=200",
        "--data.max_length=96", "--data.validation_rows=4", f"--trainer.max_steps={STEPS}",
        f"--trainer.val_check_interval={STEPS}", "--trainer.num_sanity_val_steps=0", "--checkpoint_every=20",
        "--trainer.gradient_clip_val=0.5", "--answer_tokens=0", "--trainer.enable_progress_bar=false",
        "--trainer.logger=false", f"--trainer.callbacks={json.dumps(CALLBACKS)}", *more,
    ]  # fmt: skip


def train_all(*runs: list[str]) -> int:
    return train_together.main([part for run in runs for part in ("---", *run)])


def worst(run: Path, reference: Path, steps: int = STEPS) -> float:
    """The largest relative difference of the training losses of two runs in the first steps."""
    ours, theirs = losses(run), losses(reference)
    assert len(ours) == steps
    return max(abs(ours[step] - theirs[step]) / theirs[step] for step in ours)


@pytest.fixture(params=["cera", "lora"])
def method(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory) -> Callable[[str], Path]:
    """Trains a method's four runs apart, and the same together; one of them diverges."""

    @cache
    def trained(method: str) -> Path:
        folder = tmp_path_factory.mktemp(method)
        with patch.dict(os.environ):
            for name in HYPERPARAMETERS:
                status = train.main(arguments(tiny_llama, folder / "apart", method, name))
                assert status == (3 if name == DIVERGING else 0)
            runs = [arguments(tiny_llama, folder / "together", method, name) for name in HYPERPARAMETERS]
            assert train_all(*runs) == 3
        return folder

    return trained


@pytest.fixture
def folder(trained, method) -> Path:
    return trained(method)


def test_losses_and_adapters_equal_those_of_runs_apart(folder) -> None:
    for name in RUNS:
        ours, theirs = folder / "together" / name, folder / "apart" / name
        assert worst(ours, theirs) < TOLERANCE
        for column in ("val/perplexity", "spectra/effective_rank/mean"):
            assert losses(ours, column) == pytest.approx(losses(theirs, column), rel=10 * TOLERANCE)
        adapter, expected = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (ours, theirs))
        assert adapter.keys() == expected.keys()
        for key, weight in adapter.items():
            assert torch.linalg.norm(weight - expected[key]) < 1e-3 * torch.linalg.norm(expected[key])
        files = {path.relative_to(run).as_posix() for run in (ours, theirs) for path in run.rglob("*.[jsy]*")}
        assert all((ours / file).exists() == (theirs / file).exists() for file in files)


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("cera", "--seed_everything=3"),
        ("cera", "--trainer.gradient_clip_val=0.2887"),
        ("lora", "--seed_everything=3"),  # whose gradients are too small to be clipped here
    ],
    indirect=["method"],
)
def test_another_seed_or_a_shared_norm_is_found_out(folder, tiny_llama, method, wrong, tmp_path) -> None:
    """The tolerance tells other data and masks, and gradients clipped by a norm of all, 0.5 / sqrt(3)."""
    assert train.main(arguments(tiny_llama, tmp_path, method, "b", wrong, *stop_at(25))) == 128 + signal.SIGTERM
    assert worst(tmp_path / "b", folder / "apart" / "b", 25) > 10 * TOLERANCE


def test_a_diverging_run_ends_as_it_does_apart(folder) -> None:
    """The others, which were trained beside it, equal their own runs; see above."""
    ours, theirs = (
        json.loads((folder / kind / DIVERGING / "diverged.json").read_text()) for kind in ("together", "apart")
    )
    assert ours == theirs
    assert not (folder / "together" / "a" / "diverged.json").exists()


@pytest.mark.parametrize("method", ["cera"], indirect=True)
def test_a_stopped_process_goes_on_together_or_apart(folder, tiny_llama, method, tmp_path, capsys) -> None:
    first, *others = (arguments(tiny_llama, tmp_path, method, name) for name in RUNS)
    assert train_all([*first, *stop_at(25)], *others) == 128 + signal.SIGTERM
    printed = capsys.readouterr().err
    assert "the runs have saved their state" in printed
    assert "passes of 3 runs: 24" in printed
    for name, step in {"a": 25, "b": 24, "c": 24}.items():  # each ends the step that it is in
        assert [path.name for path in (tmp_path / name / "checkpoints").glob("*.ckpt")] == [f"step={step}.ckpt"]
    a, b, c = (arguments(tiny_llama, tmp_path, method, name, "--ckpt_path=last") for name in RUNS)
    assert train_all([*a, *stop_at(25)], b) == 0
    assert "passes of 2 runs: 25" in capsys.readouterr().err
    assert train.main(c) == 0
    for name in RUNS:
        assert worst(tmp_path / name, folder / "together" / name) < TOLERANCE


@pytest.mark.parametrize("method", ["cera"], indirect=True)
def test_a_killed_process_goes_on_from_the_checkpoints_of_its_runs(folder, tiny_llama, method, tmp_path) -> None:
    runs = {name: arguments(tiny_llama, tmp_path, method, name) for name in "ab"}
    kill = ["--trainer.callbacks+=test_together.Kill", "--trainer.callbacks.init_args.step=25"]
    command = [sys.executable, "-m", "cera", "train-together", "---", *runs["a"], *kill, "---", *runs["b"]]
    folders = REPOSITORY, REPOSITORY / "tests", Path(__file__).parent
    env = {**environment(), "PYTHONPATH": os.pathsep.join(map(str, folders))}
    killed = subprocess.run(command, cwd=tmp_path, env=env, check=False)
    assert killed.returncode == -signal.SIGKILL
    for name in runs:
        assert [path.name for path in (tmp_path / name / "checkpoints").glob("*.ckpt")] == ["step=20.ckpt"]
    assert train_all(*([*run, "--ckpt_path=last"] for run in runs.values())) == 0
    for name in runs:
        assert worst(tmp_path / name, folder / "together" / name) < TOLERANCE


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [(["--trainer.accumulate_grad_batches=2"], TOLERANCE), (["--trainer.precision=bf16-true"], 1e-2)],
    ids=["accumulation", "bf16"],
)
def test_losses_equal_those_apart_with(tiny_llama, options, tolerance, tmp_path) -> None:
    options = [*options, "--trainer.max_steps=10", "--trainer.val_check_interval=10"]
    for name in "ab":
        assert train.main(arguments(tiny_llama, tmp_path / "apart", "cera", name, *options)) == 0
    assert train_all(*(arguments(tiny_llama, tmp_path / "together", "cera", name, *options) for name in "ab")) == 0
    for name, other in ("ab", "ba"):
        assert worst(tmp_path / "together" / name, tmp_path / "apart" / name, 10) < tolerance
        assert worst(tmp_path / "together" / name, tmp_path / "apart" / other, 10) > 5 * tolerance


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"adapter": LoraConfig(use_dora=True)}, "model.adapter.use_dora=True"),
        ({"adapter": LoraConfig(init_lora_weights="pissa")}, "model.adapter.init_lora_weights=pissa changes the base"),
        ({"adapter": CeraConfig(modules_to_save=["lm_head"])}, "model.adapter.modules_to_save"),
        ({"adapter": IA3Config()}, "only CeraConfig and LoraConfig can be stacked"),
        ({"adapter": CeraConfig(), "gradient_checkpointing": True}, "model.gradient_checkpointing=True"),
        ({"adapter": CeraConfig(activation="gelu", init="kaiming_normal", dropout_on="input")}, None),
        ({"adapter": LoraConfig(use_rslora=True, lora_dropout=0.1, target_modules=["q_proj"])}, None),
    ],
)
def test_what_cannot_be_stacked_is_named(tiny_llama, settings, reason) -> None:
    module = CausalLM(tiny_llama, **settings)
    module.trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    found = reason_apart(module)
    assert found is None if reason is None else reason in found


def test_bases_that_draw_random_numbers_are_named() -> None:
    assert "pdrop=0.1" in str(random_base(GPT2Config()))
    assert random_base(LlamaConfig()) is None


def test_runs_of_one_pass_agree_in_what_they_compute(tiny_llama) -> None:
    together = Together()
    modules = [
        CausalLM(tiny_llama, CeraConfig(**settings)) for settings in ({"r": 4}, {"r": 4, "scaling": 3.0}, {"r": 8})
    ]
    for module in modules:
        module.trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    found = [together.difference(name, shared_settings(module)) for name, module in zip("abc", modules, strict=True)]
    assert found == [None, None, "model.adapter.r is 8, and 4 in a"]
