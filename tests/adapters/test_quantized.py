"""CeRA beside bitsandbytes' quantized linear layers."""

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.integrations import dequantize_module_weight

from cera import CeraConfig, CeraLayer
from cera.models.backbone import load_model

bnb = pytest.importorskip("bitsandbytes")

LINEAR = {"nf4": bnb.nn.Linear4bit, "int8": bnb.nn.Linear8bitLt}


def input_ids(model):
    return torch.arange(20, device=model.device).view(2, 10)


def adapted(base, **settings):
    torch.manual_seed(0)
    return get_peft_model(base, CeraConfig(r=4, dropout=0.0, target_modules="all-linear", **settings))


def cera_layers(model):
    return [module for module in model.modules() if isinstance(module, CeraLayer)]


def train_step(model):
    output = model.train()(input_ids=input_ids(model), labels=input_ids(model))
    output.loss.backward()
    return output.logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("quantization", LINEAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_adapter_is_an_exact_no_op(tiny_llama, quantization, dtype):
    base = load_model(tiny_llama, dtype, quantization=quantization)
    expected = base(input_ids(base)).logits
    model = adapted(base).eval()
    assert len(cera_layers(model)) == 4 * 7
    assert all(isinstance(layer.base_layer, LINEAR[quantization]) for layer in cera_layers(model))
    assert all(layer.cera_up["default"].weight.dtype == torch.float32 for layer in cera_layers(model))
    assert torch.equal(model(input_ids(model)).logits, expected)


@pytest.mark.parametrize("quantization", LINEAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_adapter_gets_gradients(tiny_llama, quantization, dtype):
    model = adapted(load_model(tiny_llama, dtype, quantization=quantization), init_weights=False)
    _, gradients = train_step(model)
    assert set(gradients) == {name for name, _ in model.named_parameters() if "cera_" in name}
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, int8 rounds the layer's input too")
@pytest.mark.parametrize("quantization", LINEAR)
def test_training_equals_that_beside_the_dequantized_weights(tiny_llama, quantization):
    quantized = adapted(load_model(tiny_llama, torch.float32, quantization=quantization), init_weights=False)
    dense = adapted(load_model(tiny_llama, torch.float32))
    set_peft_model_state_dict(dense, get_peft_model_state_dict(quantized))
    for theirs, ours in zip(cera_layers(quantized), cera_layers(dense), strict=True):
        assert not theirs.base_layer.weight.is_floating_point()
        ours.base_layer.weight.data = dequantize_module_weight(theirs.base_layer).float()
    torch.testing.assert_close(train_step(quantized), train_step(dense), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantization", LINEAR)
def test_validation_does_not_change_the_gradients_that_follow(tiny_llama, quantization):
    # bitsandbytes repacks nf4 weights at a forward in eval mode on some CPUs, and has no backward for them then
    model = adapted(load_model(tiny_llama, torch.float32, quantization=quantization), init_weights=False)
    _, before = train_step(model)
    before = {name: gradient.clone() for name, gradient in before.items()}
    model.eval().zero_grad()
    with torch.no_grad():
        model(input_ids(model))
    _, after = train_step(model)
    torch.testing.assert_close(after, before)
