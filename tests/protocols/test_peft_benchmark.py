"""The entry for PEFT's benchmark is what its runner reads: a configuration without a base, and changed settings."""

import importlib.util
import json

import pytest
import torch
from conftest import REPOSITORY
from peft import PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM

import cera


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("peft_benchmark", REPOSITORY / "scripts" / "peft_benchmark.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_entry_is_a_configuration_that_peft_applies(script, tmp_path, tiny_llama, capsys) -> None:
    script.main([str(tmp_path), "--rank", "4"])
    folder = tmp_path / "experiments" / "cera" / "llama-3.2-3B-rank4"
    assert capsys.readouterr().out.strip() == str(folder)
    assert [path.name for path in folder.iterdir()] == ["adapter_config.json"]
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["task_type"]) == ("CERA", 4, "CAUSAL_LM")
    assert settings["base_model_name_or_path"] is None
    assert settings["target_modules"] is None
    config = PeftConfig.from_pretrained(str(folder))  # as the runner reads it
    assert isinstance(config, cera.CeraConfig)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config)
    names = {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"q_proj", "v_proj"}
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_another_rate_is_a_training_parameter(script, tmp_path) -> None:
    script.main([str(tmp_path), "--lr", "1e-3", "--scaling", "4"])
    folder = tmp_path / "experiments" / "cera" / "llama-3.2-3B-rank32-s4-lr0.001"
    assert json.loads((folder / "training_params.json").read_text()) == {
        "optimizer_kwargs": {"lr": 1e-3, "weight_decay": 0.1}
    }
    assert PeftConfig.from_pretrained(str(folder)).scaling == 4.0
    with pytest.raises(FileExistsError):
        script.main([str(tmp_path), "--lr", "1e-3", "--scaling", "4"])
