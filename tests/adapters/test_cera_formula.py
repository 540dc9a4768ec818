"""CeRA's numbers: against NumPy in fp64, against finite differences, and against PEFT's LoRA."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from torch.func import functional_call

from cera import CeraConfig, CeraLayer
from cera.adapters import ACTIVATIONS
from cera.models.backbone import load_model

sigmoid = np.vectorize(lambda z: 1 / (1 + math.exp(-z)), otypes=[float])
normal_cdf = np.vectorize(lambda z: (1 + math.erf(z / math.sqrt(2))) / 2, otypes=[float])

# Name -> the function and its derivative.
REFERENCE = {
    "silu": (lambda z: z * sigmoid(z), lambda z: sigmoid(z) * (1 + z * (1 - sigmoid(z)))),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
    "identity": (lambda z: z, np.ones_like),
    "gelu": (
        lambda z: z * normal_cdf(z),
        lambda z: normal_cdf(z) + z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi),
    ),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "sine": (np.sin, np.cos),
    "learned_mix": (lambda z: z, np.ones_like),  # as it starts; test_variants.py has other gammas
}


def make_layer(in_features=5, out_features=4, r=3, bias=True, **settings):
    base = nn.Linear(in_features, out_features, bias=bias, dtype=torch.float64)
    config = CeraConfig(r=r, **{"init_weights": False, "dropout": 0.0, **settings})
    return CeraLayer(base, "default", r, config)


def weights(layer):
    return layer.cera_up["default"].weight, layer.cera_down["default"].weight


def numpy_cera(layer, x, mask, scaling, activation, grad_output):
    """The output and the gradients for x, W_up and W_down, all derived by hand."""
    f, f_prime = REFERENCE[activation]
    up, down = (w.detach().numpy() for w in weights(layer))
    w0 = layer.base_layer.weight.detach().numpy()
    b0 = layer.base_layer.bias.detach().numpy() if layer.base_layer.bias is not None else 0
    rows = list(range(x.ndim - 1))
    pre = x @ up.T
    latent = mask * f(pre)
    grad_pre = scaling * (grad_output @ down) * mask * f_prime(pre)
    return (
        x @ w0.T + b0 + scaling * latent @ down.T,
        grad_output @ w0 + grad_pre @ up,
        np.tensordot(grad_pre, x, (rows, rows)),
        scaling * np.tensordot(grad_output, latent, (rows, rows)),
    )


def test_reference_covers_every_activation():
    assert set(REFERENCE) == set(ACTIVATIONS)


@given(
    leading=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    in_features=st.integers(1, 7),
    out_features=st.integers(1, 7),
    r=st.integers(1, 7),
    bias=st.booleans(),
    scaling=st.floats(-4, 4),
    activation=st.sampled_from(sorted(REFERENCE)),
    dropout=st.floats(0, 0.9),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_forward_and_backward_equal_numpy(
    leading, in_features, out_features, r, bias, scaling, activation, dropout, seed
):
    torch.manual_seed(seed)
    layer = make_layer(
        in_features, out_features, r, bias, scaling=scaling, activation=activation, dropout=dropout
    ).train()
    x = torch.randn(*leading, in_features, dtype=torch.float64, requires_grad=True)
    grad_output = torch.randn(*leading, out_features, dtype=torch.float64)
    torch.manual_seed(seed)
    mask = layer.cera_dropout["default"](torch.ones(*leading, r, dtype=torch.float64)).numpy()

    torch.manual_seed(seed)  # so that the layer draws the same mask
    output = layer(x)
    gradients = torch.autograd.grad(output, (x, *weights(layer)), grad_output)

    expected = numpy_cera(layer, x.detach().numpy(), mask, scaling, activation, grad_output.numpy())
    for ours, theirs in zip((output, *gradients), expected, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", REFERENCE)
def test_gradcheck(activation):
    torch.manual_seed(0)
    layer = make_layer(activation=activation, scaling=1.7)
    names = ("cera_up.default.weight", "cera_down.default.weight")
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def forward(x, *parameters):
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(forward, (x, *weights(layer)))


def test_dropout_is_off_in_eval():
    torch.manual_seed(0)
    layer = make_layer(dropout=0.5, scaling=1.0)
    x = torch.randn(6, 5, dtype=torch.float64)
    expected, *_ = numpy_cera(layer, x.numpy(), 1, 1.0, "silu", np.zeros((6, 4)))
    assert not np.allclose(layer.train()(x).detach().numpy(), expected)
    np.testing.assert_allclose(layer.eval()(x).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("p", [0.25, 0.8])
def test_dropout_drops_latent_units_and_scales_the_rest(p):
    torch.manual_seed(0)
    n, scaling = 40, 3.0
    layer = make_layer(n, n, n, bias=False, dropout=p, scaling=scaling, activation="identity").train()
    with torch.no_grad():  # every output now shows one latent unit of a constant 1
        layer.base_layer.weight.zero_()
        for weight in weights(layer):
            weight.copy_(torch.eye(n))
        output = layer(torch.ones(50, n, dtype=torch.float64))
    survivors = output != 0
    expected = torch.full_like(output[survivors], scaling / (1 - p))
    torch.testing.assert_close(output[survivors], expected, rtol=1e-4, atol=0)  # p is rounded to 16 bits
    assert survivors.double().mean().item() == pytest.approx(1 - p, abs=0.05)
    assert len(torch.unique(survivors, dim=0)) > 1  # each row draws its own


def test_identity_without_dropout_is_lora(tiny_llama):
    """Table 3 of the paper takes the linear branch for LoRA. It is: same weights, same numbers, same gradients."""
    shared = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    lora_config = LoraConfig(lora_alpha=10, lora_dropout=0.0, init_lora_weights=False, **shared)
    cera_config = CeraConfig(scaling=10 / 4, dropout=0.0, activation="identity", **shared)
    torch.manual_seed(0)
    lora, cera = (get_peft_model(load_model(tiny_llama, torch.float64), c) for c in (lora_config, cera_config))
    to_cera = {"lora_A": "cera_up", "lora_B": "cera_down"}

    def renamed(state):
        for old, new in to_cera.items():
            state = {name.replace(old, new): tensor for name, tensor in state.items()}
        return state

    set_peft_model_state_dict(cera, renamed(get_peft_model_state_dict(lora)))
    input_ids = torch.randint(0, 500, (2, 6))
    outputs = [model.train()(input_ids=input_ids, labels=input_ids) for model in (lora, cera)]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, rtol=1e-12, atol=1e-12)

    for output in outputs:
        output.loss.backward()
    of_lora, of_cera = ({n: p.grad for n, p in m.named_parameters() if p.requires_grad} for m in (lora, cera))
    assert len(of_cera) == 4 * 3 * 2
    assert all(gradient.abs().max() > 0 for gradient in of_cera.values())
    torch.testing.assert_close(of_cera, renamed(of_lora), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_new_adapter_is_an_exact_no_op(tiny_llama, dtype, training):
    input_ids = torch.arange(20).view(2, 10)
    base = load_model(tiny_llama, dtype)
    expected = base(input_ids).logits
    model = get_peft_model(base, CeraConfig(r=8, dropout=0.5, target_modules="all-linear")).train(training)
    assert torch.equal(model(input_ids).logits, expected)
    with torch.no_grad():  # or the comparison above would hold for an adapter that is never run
        for name, parameter in model.named_parameters():
            if "cera_down" in name:
                parameter.fill_(0.1)
    assert not torch.equal(model(input_ids).logits, expected)
