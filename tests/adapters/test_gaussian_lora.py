"""LoRA whose A starts with a given standard deviation, at any rank, in files that any PEFT reads."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from transformers import LlamaConfig, LlamaForCausalLM

from cera.adapters.gaussian_lora import GaussianLoraConfig


@pytest.fixture
def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=512, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=50
    )
    return LlamaForCausalLM(config)


def layers(model) -> list[Linear]:
    return [module for module in model.modules() if isinstance(module, Linear)]


@pytest.mark.parametrize("r", [16, 128])
@pytest.mark.parametrize("use_dora", [False, True])
def test_the_start_and_the_scale(llama, r, use_dora) -> None:
    config = GaussianLoraConfig(r=r, lora_alpha=32, target_modules=["q_proj", "v_proj"], use_dora=use_dora)
    model = get_peft_model(llama, config)
    for layer in layers(model):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert a.std().item() == pytest.approx(0.01, rel=0.05)
        assert abs(a.mean().item()) < 0.001
        assert b.count_nonzero() == 0
        assert layer.scaling["default"] == 32 / r
    assert len(layers(model)) == 2


def test_pefts_gaussian_depends_on_the_rank(llama) -> None:
    config = LoraConfig(r=16, init_lora_weights="gaussian", target_modules=["q_proj"])
    (layer,) = layers(get_peft_model(llama, config))
    assert layer.lora_A["default"].weight.std().item() == pytest.approx(1 / 16, rel=0.05)


def test_a_saved_adapter_is_an_ordinary_lora(llama, tmp_path) -> None:
    model = get_peft_model(llama, GaussianLoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    ids = torch.arange(8)[None]
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    assert "init_std" not in json.loads((tmp_path / "adapter_config.json").read_text())
    loaded = PeftModel.from_pretrained(model.unload(), str(tmp_path))
    assert type(loaded.peft_config["default"]) is LoraConfig
    assert torch.equal(loaded(ids).logits, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"init_std": 0.0}, "init_std must be positive"), ({"init_lora_weights": "gaussian"}, "has a start of its own")],
)
def test_mistakes_are_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianLoraConfig(**arguments)
