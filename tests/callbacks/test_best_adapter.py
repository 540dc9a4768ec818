"""The adapter of the lowest validation loss, beside the last one."""

import json

import pytest
from fitting import fit
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from cera.callbacks import AdapterFile, BestAdapter, Checkpoints
from cera.runs.finished import curve
from cera.runs.saved_adapter import SavedAdapter


class Spoil(Callback):
    """Spoils the adapter after ``step`` steps, so that the validation after the next step is worse."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        if trainer.global_step == self.step:
            for weight in pl_module.trainable().values():
                weight.data.add_(1.0)


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def best(folder):
    return json.loads((folder / "adapter_best" / "best.json").read_text())


def test_the_best_is_kept_beside_the_last(tiny_llama, tmp_path) -> None:
    module, _, _ = fit(tiny_llama, tmp_path, [Spoil(3), AdapterFile(tmp_path), BestAdapter()])
    losses = curve(tmp_path / "metrics.csv", "val/loss")
    assert losses[2] < losses[4]
    assert best(tmp_path) == {"step": 2, "val/loss": pytest.approx(losses[2], rel=1e-6)}
    last = weights(tmp_path / "adapter")
    assert all((last[name] - best).abs().max() > 0.5 for name, best in weights(tmp_path / "adapter_best").items())
    assert not list(tmp_path.glob(".adapter*"))
    assert "| steps | 2 of 4 |" in (tmp_path / "adapter_best" / "README.md").read_text()
    saved = SavedAdapter.find(tmp_path / "adapter_best")
    assert saved.chat_template == module.tokenizer.chat_template


def test_the_last_is_the_best_if_the_loss_falls(tiny_llama, tmp_path) -> None:
    fit(tiny_llama, tmp_path, [AdapterFile(tmp_path), BestAdapter()])
    assert best(tmp_path)["step"] == 4
    last = weights(tmp_path / "adapter")
    assert all((last[name] == weight).all() for name, weight in weights(tmp_path / "adapter_best").items())


class StopAt(Checkpoints):
    """Saves and ends a run after ``stop`` steps."""

    stop = 3

    def on_step_logged(self, trainer, to_do) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.stop
        super().on_step_logged(trainer, to_do)


def test_a_resumed_run_keeps_what_was_best_before(tiny_llama, tmp_path) -> None:
    fit(tiny_llama, tmp_path, [Spoil(3), BestAdapter(), StopAt(tmp_path / "checkpoints", 0)])
    before = best(tmp_path)
    assert before["step"] == 2
    fit(tiny_llama, tmp_path, [BestAdapter()], ckpt_path=tmp_path / "checkpoints" / "step=3.ckpt", learning_rate=0.01)
    assert best(tmp_path) == before
    (tmp_path / "adapter_best" / "best.json").unlink()  # a control: without the checkpoint's state it is written again
    forgetful = BestAdapter()
    forgetful.load_state_dict = lambda state: None  # type: ignore[method-assign]
    fit(tiny_llama, tmp_path, [forgetful], ckpt_path=tmp_path / "checkpoints" / "step=3.ckpt", learning_rate=0.01)
    assert best(tmp_path)["step"] == 4
