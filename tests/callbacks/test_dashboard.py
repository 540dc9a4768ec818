"""The HParams tab has every setting of a run, by the names that tables and labels use."""

import pytest
import yaml
from lightning import Trainer
from peft import LoraConfig

import cera
from cera.callbacks.dashboard import hyperparameters
from cera.data import ChatData, ReasoningGymWordProblems
from cera.runs.finished import FinishedRun
from cera.runs.settings import flat_settings
from cera.training.module import CausalLM


def parameters_of(adapter=None, module=None, data=None, size=60, **trainer):
    """What the tab shows of a run with these settings."""
    module = CausalLM("some/model", adapter or cera.CeraConfig(r=8), **(module or {}))
    made = Trainer(**{"max_steps": 4, "accelerator": "cpu", "logger": False, "enable_checkpointing": False} | trainer)
    module._trainer = made
    made.datamodule = ChatData(ReasoningGymWordProblems(size=size), "some/model", **(data or {}))
    return hyperparameters(module, made)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"adapter": cera.CeraConfig(r=8, scaling=2.0)}, "adapter.scaling"),
        ({"adapter": cera.CeraConfig(r=8, target_modules=["k_proj"])}, "adapter.target_modules"),
        ({"adapter": cera.CeraConfig(r=8, rank_pattern={"q_proj": 4})}, "adapter.rank_pattern"),
        ({"adapter": cera.CeraConfig(r=16)}, "r"),
        ({"module": {"warmup": 0.1}}, "warmup"),
        ({"module": {"quantization": "nf4"}}, "quantization"),
        ({"data": {"batch_size": 8}}, "data.batch_size"),
        ({"size": 70}, "data.dataset.size"),
        ({"max_steps": 5}, "steps"),
        ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val"),
        ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches"),
        ({"precision": "bf16-true"}, "trainer.precision"),
    ],
)
def test_two_runs_that_differ_are_told_apart(changes, name):
    first, second = parameters_of(), parameters_of(**changes)
    assert {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)} == {name}


def test_another_adapter_shows_its_own_settings():
    parameters = parameters_of(LoraConfig(r=8, lora_alpha=32))
    assert (parameters["adapter"], parameters["adapter.lora_alpha"]) == ("LoRA", 32)
    assert all(isinstance(value, str | int | float) for value in parameters.values())


def test_the_names_are_those_of_the_runs_configuration(two_runs):
    shown = yaml.safe_load((two_runs / "cera" / "hparams.yaml").read_text())
    settings = flat_settings(FinishedRun.read(two_runs / "cera").config)
    module_settings = {
        name: value for name, value in settings.items() if not name.startswith("trainer.") and value is not None
    }
    short = {"adapter": "CeRA", "base": "tiny_llama0", "adapter.r": None, "data.dataset": None}
    for name, value in module_settings.items():
        if short.get(name, value) is not None:
            assert shown[name] == short.get(name, value), name
    assert (shown["r"], shown["data"], shown["steps"]) == (8, "ReasoningGymWordProblems", 12)
