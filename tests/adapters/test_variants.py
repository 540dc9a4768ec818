"""The settings in which the published CeRAs differ, against NumPy references of their formulas."""

import json
import math

import numpy as np
import pytest
import torch
from families import build
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from cera import CeraConfig, CeraLayer, bottleneck_for
from cera.adapters import ACTIVATIONS, trainable_parameters
from cera.adapters.recurrent import EPSILON, RecurrentLatent

IDS = torch.arange(3, 27).view(2, 12)


def silu(z):
    return z / (1 + np.exp(-z))


def layer_of(r=3, in_features=5, out_features=4, **options):
    base = nn.Linear(in_features, out_features, dtype=torch.float64)
    config = CeraConfig(r=r, **{"init_weights": False, "dropout": 0.0, **options})
    made = CeraLayer(base, "default", r, config)
    with torch.no_grad():  # what starts at zero must count, too
        for parameter in made.cera_activation.parameters():
            parameter += torch.randn_like(parameter)
    return made


def numpy_of(tensor):
    return tensor.detach().numpy()


def reference_latent(layer, z):
    """The map from the pre-activation to the latent, by the settings that the layer's modules show."""
    module = layer.cera_activation["default"]
    steps = 0
    if isinstance(module, RecurrentLatent):
        steps, inner, outer = module.steps, numpy_of(module.inner), numpy_of(module.outer)
        module = module.activation
    if hasattr(module, "gamma"):
        latent = z + numpy_of(module.gamma) * (silu(z) - z)
    else:
        latent = {"SiLU": silu, "Sine": np.sin, "Identity": lambda z: z}[type(module).__name__](z)
    for _ in range(steps):
        normed = latent / np.sqrt((latent**2).mean(-1, keepdims=True) + EPSILON)
        latent = latent + silu(normed @ inner.T) @ outer.T / steps
    return latent


@given(
    activation=st.sampled_from(["silu", "sine", "learned_mix", "identity"]),
    steps=st.integers(0, 3),
    dropout_on=st.sampled_from(["latent", "input"]),
    dropout=st.sampled_from([0.0, 0.4]),
    alpha=st.none() | st.floats(0.1, 8),
    r=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_every_variant_equals_numpy(activation, steps, dropout_on, dropout, alpha, r, seed):
    torch.manual_seed(seed)
    layer = layer_of(
        r, activation=activation, recurrent_steps=steps, dropout_on=dropout_on, dropout=dropout, alpha=alpha
    ).train()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    torch.manual_seed(seed)
    mask = layer.cera_dropout["default"](torch.ones(2, 3, 5 if dropout_on == "input" else r, dtype=torch.float64))
    torch.manual_seed(seed)
    update = layer.update(x, "default")
    up, down = (numpy_of(part["default"].weight) for part in (layer.cera_up, layer.cera_down))
    on_input, on_latent = (numpy_of(mask), 1) if dropout_on == "input" else (1, numpy_of(mask))
    latent = on_latent * reference_latent(layer, (numpy_of(x) * on_input) @ up.T)
    np.testing.assert_allclose(
        numpy_of(update), latent @ down.T * (4 if alpha is None else alpha / r), rtol=1e-9, atol=1e-12
    )
    if dropout and not np.all(numpy_of(mask) == 1):  # the mask's place decides
        assert not np.allclose(numpy_of(update), numpy_of(layer.eval().update(x, "default")), atol=1e-12)


@pytest.mark.parametrize("options", [{"activation": "learned_mix"}, {"recurrent_steps": 2}, {"activation": "sine"}])
def test_gradients_of_the_trained_parameters(options):
    torch.manual_seed(0)
    layer = layer_of(**options)
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.cera_activation.parameters()))


# Starts


def test_starts_of_w_up():
    size = 400

    def drawn(**options):
        torch.manual_seed(0)
        return CeraLayer(nn.Linear(size, 3), "default", size, CeraConfig(r=size, **options)).cera_up["default"].weight

    uniform = drawn()
    assert uniform.abs().max() <= 1 / math.sqrt(size)
    assert uniform.std().item() == pytest.approx(1 / math.sqrt(3 * size), rel=0.01)
    assert torch.equal(drawn(init="calibrated"), uniform)  # until it is calibrated
    normal = drawn(init="kaiming_normal")
    assert normal.std().item() == pytest.approx(math.sqrt(2 / size), rel=0.01)
    assert normal.abs().max() > 3 * math.sqrt(2 / size)


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "learned_mix"},
        {"recurrent_steps": 3},
        {"activation": "sine", "alpha": 2.0, "dropout_on": "input"},
    ],
)
def test_every_variant_starts_as_the_base(tiny_llama, options):
    base = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    expected = base(IDS).logits
    assert torch.equal(get_peft_model(base, CeraConfig(r=4, **options)).eval()(IDS).logits, expected)


def test_the_mix_starts_as_lora_and_ends_as_silu():
    torch.manual_seed(0)
    z = torch.randn(50)
    mix = ACTIVATIONS["learned_mix"]()
    assert torch.equal(mix(z), z)
    with torch.no_grad():
        mix.gamma.fill_(1.0)
    torch.testing.assert_close(mix(z), torch.nn.functional.silu(z))


# Scale


def test_alpha_is_divided_by_the_rank_of_each_module(tiny_llama):
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama), CeraConfig(r=8, alpha=4.0, rank_pattern={"v_proj": 2})
    )
    layers = {name: module for name, module in model.named_modules() if isinstance(module, CeraLayer)}
    scalings = {name.rpartition(".")[2]: layer.scaling["default"] for name, layer in layers.items()}
    assert scalings == {"q_proj": 0.5, "v_proj": 2.0}


def test_alpha_and_scaling_are_alternatives():
    with pytest.raises(ValueError, match=r"CeraConfig.alpha=8 and scaling=2 are both given"):
        CeraConfig(alpha=8, scaling=2.0)
    assert CeraConfig(r=4, alpha=8).scaling_at(4) == 2.0
    assert CeraConfig(r=4, scaling=3.0).scaling_at(4) == 3.0


# Presets


def test_presets_are_the_published_ceras():
    names = ("init", "scaling", "alpha", "dropout", "dropout_on", "activation", "recurrent_steps")

    def values(config):
        return tuple(getattr(config, name) for name in names)

    assert values(CeraConfig.paper(16)) == ("kaiming_uniform", 1.0, None, 0.1, "latent", "silu", 0)
    assert values(CeraConfig.authors(16)) == ("kaiming_normal", 1.0, None, 0.1, "latent", "silu", 0)
    assert values(CeraConfig.aligned(16)) == ("kaiming_uniform", 1.0, 16.0, 0.1, "input", "silu", 0)
    assert CeraConfig.paper(16) == CeraConfig(r=16, scaling=1.0, dropout=0.1)
    changed = CeraConfig.aligned(16, alpha=64.0, activation="learned_mix", target_modules=["q_proj"])
    assert (changed.scaling_at(16), changed.activation, changed.target_modules) == (4.0, "learned_mix", {"q_proj"})


def test_aligned_starts_like_peft_s_own_lora(tiny_llama):
    models = {}
    for config in (LoraConfig(r=8, lora_alpha=8), CeraConfig.aligned(8)):
        torch.manual_seed(0)
        models[type(config)] = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config)
    lora, ours = (dict(models[kind].named_parameters()) for kind in (LoraConfig, CeraConfig))
    to_lora = {name: name.replace("cera_up", "lora_A").replace("cera_down", "lora_B") for name in ours}
    trained = [name for name, p in ours.items() if p.requires_grad]
    assert {to_lora[name] for name in trained} == {name for name, p in lora.items() if p.requires_grad}
    for name in trained:
        mine, theirs = ours[name], lora[to_lora[name]]
        assert mine.shape == theirs.shape
        assert mine.abs().max() <= 1 / math.sqrt(mine.shape[1])
        assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.1)


# Files and sizes


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "learned_mix"},
        {"recurrent_steps": 2, "activation": "identity"},
        {"recurrent_steps": 1, "activation": "learned_mix", "alpha": 2.0},
        {"granularity": "module", "activation": "learned_mix", "recurrent_steps": 2},
        {"use_dora": True, "activation": "learned_mix"},
    ],
)
def test_trained_parameters_are_counted_saved_and_loaded(tiny_llama, tmp_path, options):
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = CeraConfig(r=4, dropout=0.0, task_type="CAUSAL_LM", **options)
    counted = trainable_parameters(config, base)
    model = get_peft_model(base, config).eval()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == counted
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.5 * torch.randn_like(parameter)
    expected = model(IDS).logits
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path).eval()
    assert torch.equal(loaded(IDS).logits, expected)
    with torch.no_grad():
        for name, parameter in loaded.named_parameters():
            if ".cera_activation." in name:
                parameter.zero_()
    assert not torch.allclose(loaded(IDS).logits, expected, atol=1e-4)


def test_a_second_adapter_is_frozen_and_removed_with_its_parameters(tiny_llama):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), CeraConfig(r=4))
    model.add_adapter("mix", CeraConfig(r=4, activation="learned_mix"))
    gammas = [p for name, p in model.named_parameters() if name.endswith(".mix.gamma")]
    assert gammas
    assert not any(p.requires_grad for p in gammas)
    model.set_adapter("mix")
    assert all(p.requires_grad for p in gammas)
    model.delete_adapter("mix")
    assert not any(".mix." in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("r", [1, 7, 40])
def test_bottleneck_of_a_recurrent_latent(tiny_llama, r):
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = CeraConfig(recurrent_steps=2)
    at, above = (trainable_parameters(CeraConfig(r=n, recurrent_steps=2), base) for n in (r, r + 1))
    assert bottleneck_for(at, config, base) == bottleneck_for(above - 1, config, base) == r


def test_earlier_files_mean_what_they_meant(tmp_path):
    CeraConfig(r=4, scaling=2.0).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    written = json.loads(file.read_text())
    for name in ("init", "calibration_std", "alpha", "dropout_on", "recurrent_steps"):
        del written[name]
    file.write_text(json.dumps(written))
    assert PeftConfig.from_pretrained(tmp_path) == CeraConfig(r=4, scaling=2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "xavier"}, r"CeraConfig.init must be one of kaiming_uniform, kaiming_normal, calibrated"),
        ({"dropout_on": "output"}, r"CeraConfig.dropout_on must be one of latent, input"),
        ({"alpha": 0}, r"CeraConfig.alpha must be a positive number or null, got 0"),
        ({"alpha": float("inf")}, r"CeraConfig.alpha must be a positive number"),
        ({"calibration_std": 0.0}, r"CeraConfig.calibration_std must be a positive number"),
        ({"calibration_std": "1"}, r"CeraConfig.calibration_std must be a positive number"),
        ({"recurrent_steps": -1}, r"CeraConfig.recurrent_steps must be 0 or a positive integer"),
        ({"recurrent_steps": True}, r"CeraConfig.recurrent_steps must be 0 or a positive integer"),
        ({"recurrent_steps": 1, "target_parameters": ["experts.down_proj"]}, r"recurrent_steps needs linear targets"),
        ({"init": "calibrated", "target_parameters": ["experts.down_proj"]}, r"init='calibrated' needs linear targets"),
        ({"init": "calibrated", "init_weights": False}, r"init='calibrated' needs init_weights=True"),
    ],
)
def test_bad_settings_are_refused_by_field(options, message):
    with pytest.raises(ValueError, match=message):
        CeraConfig(**options)


@pytest.mark.parametrize(
    "options", [{"activation": "learned_mix"}, {"recurrent_steps": 2}, {"dropout_on": "input"}, {"activation": "sine"}]
)
def test_variants_compile_in_one_graph(options):
    torch._dynamo.reset()
    layer = CeraLayer(nn.Linear(6, 5), "default", 3, CeraConfig(r=3, init_weights=False, dropout=0.1, **options))
    x = torch.randn(2, 3, 6)
    compiled = torch.compile(layer.eval(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    assert torch.compile(layer.train(), fullgraph=True, backend="aot_eager")(x).shape == (2, 3, 5)


def test_linearize_and_spectra_use_the_layers_own_formula(tiny_llama):
    """The update of a variant, as both recompute it, equals what the layer adds."""
    from cera.linearize.layers import LayerUpdate
    from cera.spectral.hooks import find_branches

    torch.manual_seed(0)
    options = {"activation": "learned_mix", "recurrent_steps": 2, "alpha": 6.0, "dropout_on": "input"}
    config = CeraConfig(r=4, init_weights=False, target_modules=["v_proj"], **options)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".cera_activation." in name:
                parameter += 0.3 * torch.randn_like(parameter)
    layer = next(module for module in model.modules() if isinstance(module, CeraLayer))
    x = torch.randn(7, layer.in_features, dtype=torch.float64)
    expected = layer.update(x, "default")
    recomputed = LayerUpdate("v_proj", layer, "default")
    torch.testing.assert_close(recomputed(x) @ recomputed.basis.T, expected)
    branch = find_branches(model)[0]
    latent = branch.activations((x,), {})
    torch.testing.assert_close(branch.scaling * latent @ branch.down.T, expected)
    assert branch.up is None  # no linear adapter


def test_experts_share_a_gamma():
    config = CeraConfig(
        r=8, activation="learned_mix", dropout_on="input", alpha=4.0, target_modules=[], init_weights=False,
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
    )  # fmt: skip
    model = get_peft_model(build("qwen3_moe"), config).eval()
    gammas = [p for name, p in model.named_parameters() if name.endswith("gamma")]
    assert all(p.shape == (1,) and p.requires_grad for p in gammas)
    before = model(IDS).logits
    with torch.no_grad():
        for gamma in gammas:
            gamma.fill_(3.0)
    assert not torch.allclose(model(IDS).logits, before, atol=1e-5)
    branch = next(m for m in model.modules() if type(m).__name__ == "ExpertBranch")
    assert branch.scaling == 0.5
    assert model.train()(IDS).logits.isfinite().all()
