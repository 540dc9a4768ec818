import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

from cera import CeraConfig
from cera.adapters import ACTIVATIONS
from cera.adapters.activations import make_activation

TRAINED = {"prelu", "xielu"}


def update(activation: str) -> tuple[torch.Tensor, torch.Tensor, nn.Linear, nn.Linear]:
    """The update of a random CeRA branch with ``activation``, its input, ``W_up`` and ``W_down``."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 6))
    config = CeraConfig(r=4, activation=activation, scaling=1.0, target_modules=["0"], init_weights=False)
    layer = get_peft_model(base, config).base_model.model[0]
    x = torch.randn(5, 8)
    return layer(x) - layer.base_layer(x), x, layer.cera_up["default"], layer.cera_down["default"]


@pytest.mark.parametrize("name", sorted(ACT2FN.keys() - TRAINED))
def test_every_activation_of_transformers_can_be_used(name):
    delta, x, up, down = update(name)
    expected = down(ACTIVATIONS.get(name, lambda: ACT2FN[name])()(up(x)))
    torch.testing.assert_close(delta, expected)
    if name != "linear":
        assert not torch.allclose(delta, down(up(x)), atol=1e-4)


def test_an_activation_of_ones_own_is_one_line(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "softsign", nn.Softsign)
    delta, x, up, down = update("softsign")
    torch.testing.assert_close(delta, down(nn.functional.softsign(up(x))))


def test_an_activation_with_parameters_is_trained_saved_and_loaded(monkeypatch, tiny_llama, tmp_path):
    monkeypatch.setitem(ACTIVATIONS, "prelu", nn.PReLU)
    config = CeraConfig(r=4, activation="prelu", init_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config).eval()
    slopes = [p for name, p in model.named_parameters() if ".cera_activation." in name]
    assert slopes
    assert all(slope.requires_grad for slope in slopes)
    with torch.no_grad():
        for slope in slopes:
            slope.fill_(3.0)
    ids = torch.arange(8)[None]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path).eval()
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_names_of_this_package_come_first():
    assert type(make_activation("silu")) is nn.SiLU
    assert type(make_activation("gelu")) is nn.GELU


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_activations_with_parameters_are_refused(name):
    with pytest.raises(ValueError, match=f"activation .*'{name}' has parameters"):
        CeraConfig(activation=name)


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"activation .*'sillu'.*Did you mean silu"):
        CeraConfig(activation="sillu")
