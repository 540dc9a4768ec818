"""The hybrid of CeRA and DoRA: what is normalized, when it is DoRA, and that it starts as the base."""

import pytest
import torch
from command_line import command, losses, run, two
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import cera
from cera.adapters import CeraLayer


def layer(activation="silu", base=None, **settings) -> CeraLayer:
    torch.manual_seed(0)
    base = nn.Linear(12, 7) if base is None else base
    config = cera.CeraConfig(r=3, activation=activation, dropout=0.0, scaling=0.7, use_dora=True, **settings)
    return CeraLayer(base, "default", 3, config)


def trained(made: CeraLayer) -> CeraLayer:
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "cera_" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_starts_as_the_base_exactly(dtype):
    made = layer(base=nn.Linear(12, 7).to(dtype))
    x = torch.randn(5, 12, dtype=dtype)
    assert torch.equal(made(x), made.base_layer(x))


@pytest.mark.parametrize("base", [nn.Linear(12, 7), nn.Linear(12, 7, bias=False), Conv1D(7, 12)])
def test_formula(base):
    made = trained(layer(base=base))
    x = torch.randn(5, 12)
    weight = base.weight.T if isinstance(base, Conv1D) else base.weight
    up, down = made.cera_up["default"].weight, made.cera_down["default"].weight
    norms = (weight + 0.7 * down @ up).norm(dim=1)
    inner = x @ weight.T + 0.7 * nn.functional.silu(x @ up.T) @ down.T
    expected = made.cera_magnitude["default"] / norms * inner + (0 if base.bias is None else base.bias)
    torch.testing.assert_close(made(x), expected)


def test_is_dora_with_the_identity(tiny_llama):
    ids = torch.randint(0, 1000, (2, 16))
    outputs, gradients = [], []
    targets = ["q_proj", "v_proj"]
    for adapter in (
        cera.CeraConfig(r=4, activation="identity", dropout=0.0, scaling=2.0, use_dora=True, target_modules=targets),
        LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=targets),
    ):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32), adapter)
        trainable = [p for p in model.parameters() if p.requires_grad]
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            # A, B and magnitude lie in another order in the two: fill by shape
            for shape in sorted({tuple(p.shape) for p in trainable}):
                for p in (p for p in trainable if tuple(p.shape) == shape):
                    p += 0.1 * torch.randn(shape, generator=generator)
                    if p.ndim == 2:
                        p.copy_(torch.randn(shape, generator=generator) * 0.2)
        model(ids).logits.square().mean().backward()
        outputs.append(model(ids).logits.detach())
        gradients.append(sorted(p.grad.norm().item() for p in trainable))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-3)


def test_norms_are_constants_in_the_backward_pass():
    made = trained(layer())
    x = torch.randn(5, 12)
    made(x).sum().backward()
    up = made.cera_up["default"].weight
    scale = (made.cera_magnitude["default"] / made._norms("default")).detach()
    ours = up.grad.clone()
    up.grad = None
    (scale * made.update(x, "default")).sum().backward()
    torch.testing.assert_close(ours, up.grad)


def test_beside_an_adapter_without_magnitude():
    made = layer()
    made.update_layer("plain", 2, cera.CeraConfig(r=2, dropout=0.0))
    trained(made)
    x = torch.randn(4, 12)
    base = made.base_layer(x)
    deltas = {name: made.delta(x, base, name) for name in ("default", "plain")}
    made.set_adapter(["default", "plain"])
    torch.testing.assert_close(made(x), base + deltas["default"] + deltas["plain"])
    mixed = made(x, adapter_names=["plain", "__base__", "default", "default"])
    torch.testing.assert_close(mixed[0], (base + deltas["plain"])[0])
    torch.testing.assert_close(mixed[1], base[1])
    torch.testing.assert_close(mixed[2:], (base + deltas["default"])[2:])


@pytest.mark.parametrize(
    "settings", [{"granularity": "module"}, {"target_parameters": ["experts.gate_up_proj"]}, {"use_dora": "yes"}]
)
def test_errors(settings):
    with pytest.raises(ValueError, match=r"CeraConfig\.use_dora"):
        cera.CeraConfig(**{"use_dora": True, **settings})


@pytest.mark.slow
def test_zero3_in_two_processes_equals_one(tiny_llama, tmp_path):
    """The norms are of weights that are partitioned, and gathered in each forward pass."""
    options = ["--model.adapter.init_args.use_dora=true", "--model.adapter.init_args.dropout=0"]
    options.append("--trainer.precision=bf16-true")
    run(command(tiny_llama, tmp_path / "one", *options, "--data.batch_size=4"))
    run(command(tiny_llama, tmp_path / "two", *options, *two("zero3")))
    for column in ("train/loss", "val/perplexity"):
        alone, together = (losses(tmp_path / name / "test", column) for name in ("one", "two"))
        assert together == pytest.approx(alone, rel=5e-3)
        assert alone[max(alone)] < alone[min(alone)]
