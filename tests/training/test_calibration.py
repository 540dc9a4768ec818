"""An adapter with ``init="calibrated"`` is calibrated once, before step 0, on batches that are still trained on."""

import math

import pytest
import torch
from command_line import command, losses, run, run_here, two
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

import cera
from cera.adapters import BranchLayer
from cera.data import ChatData, ReasoningGymWordProblems
from cera.training import calibration
from cera.training.module import CausalLM

CALIBRATED = "--model.adapter.init_args.init=calibrated"


class Seen(Callback):
    """What was there before the first step, and the tokens of every batch."""

    def __init__(self):
        self.start, self.tokens = {}, []

    def on_train_start(self, trainer, pl_module):
        self.start = {name: p.detach().clone() for name, p in pl_module.trainable().items()}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.tokens.append(batch["input_ids"])


def fit(base, folder, ckpt_path=None, steps=4, **adapter):
    seen = Seen()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=4, num_sanity_val_steps=0, callbacks=[seen], limit_val_batches=2,
        enable_checkpointing=False, val_check_interval=2, limit_train_batches=steps, max_epochs=1,
        default_root_dir=folder, **quiet,
    )  # fmt: skip
    data = ChatData(ReasoningGymWordProblems(size=60), base, validation_rows=8, max_length=192, batch_size=2)
    torch.manual_seed(0)
    module = CausalLM(base, cera.CeraConfig(r=4, **adapter), learning_rate=0.01)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, trainer, seen


def branches(module):
    return [layer for layer in module.modules() if isinstance(layer, BranchLayer)]


def test_calibrated_on_the_first_batches_which_are_trained_on_all_the_same(tiny_llama, tmp_path):
    module, _, seen = fit(tiny_llama, tmp_path, init="calibrated")
    _, _, plain = fit(tiny_llama, tmp_path)
    assert [tokens.tolist() for tokens in seen.tokens] == [tokens.tolist() for tokens in plain.tokens]
    ups = [name for name in seen.start if "cera_up" in name]
    assert not any(torch.equal(seen.start[name], plain.start[name]) for name in ups)
    downs = [name for name in seen.start if "cera_down" in name]
    assert all(not seen.start[name].any() for name in downs)

    data = ChatData(ReasoningGymWordProblems(size=60), tiny_llama, validation_rows=8, max_length=192, batch_size=2)
    data.setup()
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(calibration.BATCHES), strict=False)]
    with torch.no_grad():
        for name, p in module.trainable().items():
            p.copy_(seen.start[name])
    measured = cera.calibrate(module.model, batches)
    assert all(value == pytest.approx(1.0, rel=1e-4) for value in measured.values())


def test_a_resumed_run_has_the_weights_of_its_checkpoint(tiny_llama, tmp_path):
    stopped, trainer, _ = fit(tiny_llama, tmp_path, steps=2, init="calibrated", dropout=0.0)
    assert trainer.global_step == 2
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    # with nothing left to train
    again, *_ = fit(tiny_llama, tmp_path, tmp_path / "stopped.ckpt", steps=2, init="calibrated", dropout=0.0)
    assert all(torch.equal(again.trainable()[name], weight) for name, weight in stopped.trainable().items())


@pytest.mark.slow
def test_a_run_is_calibrated_once(tiny_llama, tmp_path):
    options = [CALIBRATED, "--trainer.max_steps=4"]
    whole = run(command(tiny_llama, tmp_path / "whole", *options))
    stopped = command(tiny_llama, tmp_path / "stopped", *options, "--checkpoint_every=2")
    run([*stopped, "--trainer.limit_train_batches=2", "--trainer.max_epochs=1"])
    resumed = run([*stopped, "--ckpt_path=last"])
    assert "Calibrated W_up of 8 modules on 4 batches" in whole
    assert "Calibrated" not in resumed
    assert losses(tmp_path / "stopped" / "test") == losses(tmp_path / "whole" / "test")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_two_processes_calibrate_like_one(tiny_llama, tmp_path, strategy):
    precision = "--trainer.precision=" + ("32-true" if strategy == "ddp" else "bf16-true")
    common = [CALIBRATED, "--model.adapter.init_args.dropout=0", "--trainer.max_steps=4", precision]
    run(command(tiny_llama, tmp_path / "alone", *common, "--data.batch_size=4"))
    run(command(tiny_llama, tmp_path / "two", *common, *two(strategy)))
    ours, theirs = (losses(tmp_path / name / "test") for name in ("two", "alone"))
    assert sorted(ours) == sorted(theirs) == list(range(4))
    tolerance = 1e-5 if strategy == "ddp" else 5e-3
    assert all(math.isclose(ours[step], theirs[step], rel_tol=tolerance) for step in theirs)


def test_zero3_is_refused_before_anything_is_loaded(tiny_llama, tmp_path, monkeypatch, capsys):
    status, printed = run_here(monkeypatch, capsys, command(tiny_llama, tmp_path, CALIBRATED, *two("zero3")))
    assert status == 2
    assert "model.adapter.init=calibrated: ZeRO-3 partitions the base" in printed


def test_gammas_are_trained_and_logged(tiny_llama, tmp_path):
    module, trainer, seen = fit(tiny_llama, tmp_path, activation="learned_mix")
    logged = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("gamma")}
    gammas = {name: p for name, p in module.trainable().items() if name.endswith("gamma")}
    assert all(seen.start[name].item() == 0 != p.item() for name, p in gammas.items())
    by_layer = {name: value for name, value in logged.items() if name != "gamma/mean"}
    assert sorted(by_layer) == sorted(f"gamma_by_layer/{name}/{i}" for name in ("q_proj", "v_proj") for i in range(4))
    assert sorted(by_layer.values()) == pytest.approx(sorted(p.item() for p in gammas.values()))
    assert logged["gamma/mean"] == pytest.approx(sum(by_layer.values()) / 8)


def test_weight_decay_spares_gamma(tiny_llama, tmp_path):
    module, _, _ = fit(tiny_llama, tmp_path, activation="learned_mix")
    module.weight_decay = 0.1
    groups = module.configure_optimizers()["optimizer"].param_groups
    decayed = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {decayed[id(p)] for name, p in module.trainable().items() if name.endswith("gamma")} == {0.0}
    assert {decayed[id(p)] for name, p in module.trainable().items() if not name.endswith("gamma")} == {0.1}
