"""Forgetting beside the task's curves: at the start and at each validation, and the same after a resume."""

import pytest
from fitting import fit
from peft import LoraConfig

from cera.callbacks import AdapterFile, Checkpoints, Forgetting
from cera.data import PythonDocumentation
from cera.data.texts import text_batches
from cera.runs.finished import curve
from cera.training.forgetting import measure

COLUMNS = ("forgetting/loss", "forgetting/perplexity", "forgetting/loss_increase", "forgetting/kl")


def columns(folder):
    return {name: curve(folder / "metrics.csv", name) for name in COLUMNS}


def test_logged_before_the_first_step_and_at_each_validation(tiny_llama, tmp_path) -> None:
    callbacks = [Forgetting(PythonDocumentation(), batches=2), AdapterFile(tmp_path)]
    module, data, _ = fit(tiny_llama, tmp_path, callbacks, num_sanity_val_steps=-1)
    logged = columns(tmp_path)
    assert all(list(values) == [0, 2, 4] for values in logged.values())
    assert logged["forgetting/kl"][0] == 0
    assert logged["forgetting/loss_increase"][0] == 0
    assert 0 < logged["forgetting/kl"][2] < logged["forgetting/kl"][4]
    batches = text_batches(PythonDocumentation(), module.tokenizer, 2, data.batch_size, data.max_length, packing=True)
    last = measure(module.model, batches)
    assert logged["forgetting/loss"][4] == pytest.approx(last.loss, rel=1e-6)
    assert logged["forgetting/kl"][4] == pytest.approx(last.kl, rel=1e-5)
    assert last.base_loss == pytest.approx(logged["forgetting/loss"][0], rel=1e-6)
    assert (
        "| KL from the base on general text, in nats per token, after 4 steps |"
        in (tmp_path / "adapter" / "README.md").read_text()
    )


class StopAfterThree(Checkpoints):
    def on_step_logged(self, trainer, to_do) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == 3
        super().on_step_logged(trainer, to_do)


def test_a_run_is_not_changed_and_a_resumed_one_is_the_same(tiny_llama, tmp_path) -> None:
    fit(tiny_llama, tmp_path / "without", [])
    fit(tiny_llama, tmp_path / "whole", [Forgetting(PythonDocumentation(), batches=1)])
    whole = curve(tmp_path / "whole" / "metrics.csv", "train/loss")
    assert whole == curve(tmp_path / "without" / "metrics.csv", "train/loss")
    stopped = tmp_path / "stopped"
    fit(tiny_llama, stopped, [Forgetting(PythonDocumentation(), batches=1), StopAfterThree(stopped / "checkpoints", 0)])
    resumed = [Forgetting(PythonDocumentation(), batches=1)]
    fit(tiny_llama, stopped, resumed, ckpt_path=stopped / "checkpoints" / "step=3.ckpt")
    ours, theirs = columns(stopped), columns(tmp_path / "whole")
    for name in COLUMNS:
        assert {step: ours[name][step] for step in theirs[name]} == theirs[name]


@pytest.mark.parametrize(
    ("adapter", "message"), [(LoraConfig(init_lora_weights="olora", r=4), "changes the base's weights")]
)
def test_an_adapter_without_a_base_is_refused_before_a_step(tiny_llama, tmp_path, adapter, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tiny_llama, tmp_path, [Forgetting(PythonDocumentation())], adapter=adapter)


def test_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Forgetting\.batches must be at least 1, got 0"):
        Forgetting(PythonDocumentation(), batches=0)
