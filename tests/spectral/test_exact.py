"""The update of a layer is that of its weights in high precision, whatever the method and the base's data type."""

import copy

import pytest
import torch
from families import build
from peft import (
    BOFTConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeanutConfig,
    VeraConfig,
    get_peft_model,
)
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from token_batches import token_batches
from torch import nn

import cera
from cera.models.backbone import load_model
from cera.spectral import effective_rank
from cera.spectral.aggregate import summarize
from cera.spectral.hooks import find_branches
from cera.spectral.recorder import NotRecordableError, SpectrumRecorder, measure

TARGETS = ["q_proj", "v_proj"]
LAYER = "model.layers.1.self_attn.q_proj"
RANK = 4

LOW_RANK = {
    "cera": cera.CeraConfig(r=RANK, scaling=0.5),
    "lora": LoraConfig(r=RANK, lora_alpha=8, target_modules=TARGETS),
    "vera": VeraConfig(r=RANK, target_modules=TARGETS),
    "miss": MissConfig(r=RANK, target_modules=TARGETS),
    "peanut": PeanutConfig(r=RANK, target_modules=TARGETS),
    "hra": HRAConfig(r=RANK, target_modules=TARGETS),
}
FULL_RANK = {
    "lora with a bias": LoraConfig(r=RANK, lora_bias=True, target_modules=TARGETS),
    "dora": LoraConfig(r=RANK, use_dora=True, target_modules=TARGETS),
    "cera dora": cera.CeraConfig(r=RANK, use_dora=True),
    "loha": LoHaConfig(r=RANK, target_modules=TARGETS),
    "lokr": LoKrConfig(r=RANK, target_modules=TARGETS),
    "oft": OFTConfig(r=0, oft_block_size=8, target_modules=TARGETS),
    "boft": BOFTConfig(boft_block_size=8, target_modules=TARGETS),
    "ia3": IA3Config(target_modules=TARGETS, feedforward_modules=[]),
    "fourierft": FourierFTConfig(n_frequency=50, target_modules=TARGETS),
}
ADAPTERS = LOW_RANK | FULL_RANK


def trained(adapter, dtype=torch.bfloat16, scale=0.01, base=None):
    """The base in ``dtype`` with an adapter after some training: small changes of all of its weights."""
    torch.manual_seed(0)
    model = get_peft_model(base or build("llama").to(dtype), adapter)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn_like(parameter)
    return model.eval()


def batches(count=2):
    return token_batches(count, vocabulary=64, length=20, padded_from=12)


def forward(model, batch):
    with torch.no_grad():
        return model(batch["input_ids"], position_ids=batch["position_ids"])


def inputs_of(model, name):
    """What a layer reads in each batch, [(batch, length, in)]."""
    seen = []
    layer = model.get_submodule(f"base_model.model.{name}")
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for batch in batches():
        forward(model, batch)
    handle.remove()
    return seen


def reference(model, name, dtype=torch.float64):
    """Singular values of the layer's output minus its base layer's, with all weights in ``dtype``."""
    inputs = inputs_of(model, name)
    layer = copy.deepcopy(model.get_submodule(f"base_model.model.{name}")).to(dtype)
    rows = []
    with torch.no_grad():
        for x, batch in zip(inputs, batches(), strict=True):
            base = layer.base_layer(x.to(dtype)).clone()
            rows.append((layer(x.to(dtype)) - base)[batch["tokens"]].double())
    return torch.linalg.svdvals(torch.cat(rows))


def assert_same_spectrum(measured, expected, rtol=1e-4):
    size = min(len(measured), len(expected))
    torch.testing.assert_close(measured[:size], expected[:size], rtol=rtol, atol=1e-6 * expected[0].item())
    assert effective_rank(measured) == pytest.approx(effective_rank(expected), rel=rtol)


@pytest.mark.parametrize("name", ADAPTERS)
def test_update_beside_a_bf16_base_is_that_of_fp32(name):
    model = trained(ADAPTERS[name])
    measured = measure(model, batches(), ["update"]).values["update"]
    for layer in measured:
        precise = reference(model, layer, torch.float32 if "dora" in name else torch.float64)
        assert_same_spectrum(measured[layer], precise)
        if name in LOW_RANK:
            assert effective_rank(measured[layer]) <= RANK
            # which the difference of the layer's own bf16 outputs exceeds
            assert effective_rank(reference(model, layer, torch.bfloat16)) > RANK


@pytest.mark.parametrize("name", ["peanut", "vera", "miss", "cera dora", "a tuner of one's own"])
def test_a_bf16_model_has_the_effective_rank_of_the_same_weights_in_fp32(name):
    """Their inputs differ by the rounding of the layers before; the update itself is rounded in neither."""
    if name in ADAPTERS:
        model = trained(copy.deepcopy(ADAPTERS[name]))
    else:
        model = build("llama").to(torch.bfloat16).eval()
        for layer in model.model.layers:
            layer.self_attn.q_proj = OwnLayer(layer.self_attn.q_proj, r=RANK)
    low = measure(model, batches(), ["update"])
    high = measure(model.float(), batches(), ["update"])
    assert low.sample == high.sample
    for matrix in ("update", "update_centred"):
        for layer, sigma in high.values[matrix].items():
            rank = effective_rank(low.values[matrix][layer])
            assert rank == pytest.approx(effective_rank(sigma), rel=0.01)
            assert name == "cera dora" or rank <= RANK
            assert rank > 1


@pytest.mark.parametrize("name", ["vera", "cera dora", "dora", "loha"])
@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_weights_and_random_numbers_as_they_were(name, training):
    adapter = copy.deepcopy(ADAPTERS[name])
    model = trained(adapter).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = batches(1)[0]
    torch.manual_seed(1)
    expected, drawn = forward(model, batch).logits, torch.rand(3)
    torch.manual_seed(1)
    with SpectrumRecorder(model, ["update"]).attached(batch["tokens"]):
        logits = forward(model, batch).logits
    assert torch.equal(logits, expected)
    assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "adapter",
    [
        LoraConfig(r=RANK, lora_dropout=0.5, target_modules=TARGETS),
        LoraConfig(r=RANK, lora_dropout=0.5, use_dora=True, target_modules=TARGETS),
        LoraConfig(r=RANK, lora_dropout=0.5, lora_bias=True, target_modules=TARGETS),
        VeraConfig(r=RANK, vera_dropout=0.5, target_modules=TARGETS),
    ],
    ids=["lora", "dora", "lora with a bias", "vera"],
)
def test_in_training_mode_the_masks_are_those_of_the_forward_pass(adapter):
    model = trained(adapter, torch.float32, scale=0.1).train()
    layer = model.get_submodule(f"base_model.model.{LAYER}")
    seen = {}
    layer.base_layer.register_forward_hook(lambda _, args, output: seen.update(base=output.clone()))
    layer.register_forward_hook(lambda _, args, output: seen.update(all=output))
    batch = batches(1)[0]
    recorder = SpectrumRecorder(model, ["update"])
    with recorder.attached(batch["tokens"]):
        forward(model, batch)
    expected = torch.linalg.svdvals((seen["all"] - seen["base"])[batch["tokens"]].double())
    assert_same_spectrum(recorder.spectra(0).values["update"][LAYER], expected, rtol=1e-3)
    without_dropout = measure(model, [batch], ["update"]).values["update"][LAYER]
    assert without_dropout[0].item() != pytest.approx(expected[0].item(), rel=0.01)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["lora", "lora with a bias", "dora", "cera dora", "vera"])
def test_beside_a_quantized_base(tiny_llama, quantization, name):
    pytest.importorskip("bitsandbytes")
    base = load_model(tiny_llama, torch.bfloat16, quantization=quantization)
    model = trained(copy.deepcopy(ADAPTERS[name]), base=base)
    recorder = SpectrumRecorder(model, ["update"])
    inputs = {}
    layer = model.get_submodule(f"base_model.model.{LAYER}")
    layer.register_forward_pre_hook(lambda _, args: inputs.update(x=args[0]))
    with recorder.attached():
        forward(model, batches(1)[0])
    measured = recorder.spectra(0).values["update"][LAYER]

    plain = trained(copy.deepcopy(ADAPTERS[name]), base=load_model(tiny_llama, torch.float32))
    copied = plain.get_submodule(f"base_model.model.{LAYER}")
    copied.load_state_dict(
        {key: value for key, value in layer.state_dict().items() if "base_layer" not in key}, strict=False
    )
    copied.base_layer.weight.data = dequantize_module_weight(layer.base_layer).float()
    dtype = torch.float32 if "dora" in name else torch.float64
    copied.to(dtype)
    with torch.no_grad():
        x = inputs["x"].to(dtype)
        update = copied(x) - copied.base_layer(x)
    assert_same_spectrum(measured, torch.linalg.svdvals(update.flatten(0, 1).double()), rtol=1e-3)


# Forms that are not known


class Doubled(lora.Linear):
    """A subclass with another formula: W0 x + s B A 2x, computed in the base's data type."""

    def forward(self, x, *args, **kwargs):
        up, down = self.lora_A["default"], self.lora_B["default"]
        update = down.weight.to(x.dtype) @ (up.weight.to(x.dtype) @ (2 * x.bfloat16().to(x.dtype)).mT)
        return self.base_layer(x) + self.scaling["default"] * update.mT


class OwnLayer(nn.Module, BaseTunerLayer):
    """A layer of a tuner of one's own, which casts as it likes and keeps a factor that is no parameter."""

    adapter_layer_names = ("own_up", "own_down")

    def __init__(self, base_layer, r=8):
        super().__init__()
        self.base_layer = base_layer
        self.r = {"default": r}
        self.own_up = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, r, bias=False)})
        self.own_down = nn.ModuleDict({"default": nn.Linear(r, base_layer.out_features, bias=False)})
        self.factor = torch.full((r,), 0.3, dtype=torch.bfloat16)

    def forward(self, x):
        latent = torch.tanh(self.own_up["default"](x.float())).bfloat16() * self.factor
        return self.base_layer(x) + self.own_down["default"](latent.float()).to(x.dtype)


def expected_of_own_layer(layer, x):
    up, down = (part["default"].weight.double() for part in (layer.own_up, layer.own_down))
    return torch.tanh(x @ up.T) * layer.factor.double() @ down.T


def expected_of_doubled(layer, x):
    up, down = (part["default"].weight.double() for part in (layer.lora_A, layer.lora_B))
    return layer.scaling["default"] * 2 * x @ up.T @ down.T


@pytest.mark.parametrize("kind", ["a subclass of LoRA's layer", "a tuner of one's own"])
def test_a_layer_of_unknown_form_takes_the_exact_route(kind):
    if kind == "a tuner of one's own":
        model = build("llama").to(torch.bfloat16)
        attention = model.model.layers[1].self_attn
        attention.q_proj = layer = OwnLayer(attention.q_proj)
        expected = expected_of_own_layer
    else:
        model = trained(LoraConfig(r=8, target_modules=["q_proj"], layers_to_transform=[1]))
        layer = model.get_submodule(f"base_model.model.{LAYER}")
        layer.__class__ = Doubled
        expected = expected_of_doubled
    (branch,) = find_branches(model)
    assert branch.down is None
    x = []
    layer.register_forward_pre_hook(lambda _, args: x.append(args[0].double()))
    recorder = SpectrumRecorder(model, ["update", "latent"])
    with recorder.attached():
        forward(model, batches(1)[0])
    recorded = recorder.spectra(0)
    with torch.no_grad():
        sigma = torch.linalg.svdvals(expected(layer, x[0]).flatten(0, 1))
    assert_same_spectrum(recorded.values["update"][LAYER], sigma)
    assert effective_rank(recorded.values["update"][LAYER]) <= 8
    assert not recorded.values["latent"]


def test_known_forms_take_the_fast_route():
    for name in ("cera", "lora"):
        assert all(branch.down is not None for branch in find_branches(trained(ADAPTERS[name])))


@pytest.mark.parametrize(
    "adapter", [LoraConfig(r=48, target_modules=TARGETS), cera.CeraConfig(r=48)], ids=["lora", "cera"]
)
@pytest.mark.parametrize("quantity", ["update", "latent"])
def test_a_rank_above_the_layers_width_is_no_share_that_cannot_be_reached(adapter, quantity):
    """q_proj is 32 -> 32 and v_proj 32 -> 16, in a batch of 52 tokens. A non-linear latent may have a rank above 32."""
    model = trained(adapter, torch.float32, scale=1.0)
    spectra = measure(model, batches(1), [quantity])
    assert set(spectra.ranks.values()) == {48}
    shares = summarize(spectra.values[quantity], spectra.ranks).by_layer["effective_rank_over_r"]
    for name, sigma in spectra.values[quantity].items():
        possible = 16 if quantity == "update" and "v_proj" in name else 32
        possible = 48 if quantity == "latent" and isinstance(adapter, cera.CeraConfig) else possible
        assert len(sigma) == possible
        assert shares[name] == effective_rank(sigma) / possible <= 1


# Layers that see something else, and adapters that are off


@pytest.mark.parametrize("name", ["lora", "vera"])
def test_an_adapted_head_is_measured_at_all_tokens(name):
    adapter = copy.deepcopy(ADAPTERS[name])
    adapter.target_modules = ["q_proj", "lm_head"] if name == "lora" else ["lm_head"]
    model = trained(adapter)
    measured = measure(model, batches(), ["update"]).values["update"]
    assert_same_spectrum(measured["lm_head"], reference(model, "lm_head"))


def test_a_layer_without_a_row_for_each_token_is_named():
    adapter = LoraConfig(r=RANK, target_modules=["q_proj", "lm_head"])
    model = trained(adapter)
    recorder = SpectrumRecorder(model, ["update", "weight"])
    batch = batches(1)[0]
    with recorder.attached(batch["tokens"]), torch.no_grad():
        model(batch["input_ids"], logits_to_keep=2)
    assert recorder.unmeasured == {"lm_head": "its activations (3, 2, 4) have no row for each token"}
    values = recorder.spectra(0).values
    assert list(values["update"]) == [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    assert "lm_head" in values["weight"]  # which needs no activations


def test_a_layer_that_sees_flattened_positions_has_its_padding_left_out():
    layers = nn.ModuleDict({"proj": nn.Linear(8, 8)})
    model = get_peft_model(layers, LoraConfig(r=RANK, target_modules=["proj"], init_lora_weights=False))
    x, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    layer = model.get_submodule("base_model.model.proj")
    spectra = []
    for value in (x, x.flatten(0, 1)):
        recorder = SpectrumRecorder(model, ["update"])
        with recorder.attached(mask):
            layer(value)
        assert recorder.accumulators["proj"].rows == 7
        spectra.append(recorder.spectra(0).values["update"]["proj"])
    assert torch.equal(*spectra)


@pytest.mark.parametrize("name", ["lora", "vera"])
@pytest.mark.parametrize("state", ["merged", "disabled", "two active"])
def test_an_adapter_that_is_off_is_an_error_and_not_a_rank_of_zero(name, state):
    model = trained(copy.deepcopy(ADAPTERS[name]), torch.float32)
    assert effective_rank(measure(model, batches(1), ["update"]).values["update"][LAYER]) > 1
    match = "merged into the base, or disabled"
    if state == "merged":
        model.merge_adapter()
    elif state == "disabled":
        model.base_model.disable_adapter_layers()
    else:
        model.add_adapter("other", copy.deepcopy(ADAPTERS[name]))
        model.base_model.set_adapter(["default", "other"])
        match = r"exactly one adapter must be active to be measured, got \['default', 'other'\]"
    with pytest.raises(NotRecordableError, match=match):
        measure(model, batches(1), ["update"])


def test_an_adapter_that_is_switched_off_afterwards_has_no_spectra():
    for name in ("lora", "vera"):
        model = trained(copy.deepcopy(ADAPTERS[name]), torch.float32)
        recorder = SpectrumRecorder(model, ["update"])
        with recorder.attached(), model.disable_adapter():
            forward(model, batches(1)[0])
        assert recorder.unmeasured[LAYER] == "its adapter was never run"
        assert recorder.spectra(0).values["update"] == {}


def test_convolutions_have_a_row_for_each_position():
    model = get_peft_model(
        nn.ModuleDict({"conv": nn.Conv2d(3, 16, 3)}),
        LoraConfig(r=2, target_modules=["conv"], init_lora_weights=False),
    )
    layer, x = model.get_submodule("base_model.model.conv"), torch.randn(2, 3, 9, 9)
    recorder = SpectrumRecorder(model, ["update"])
    with recorder.attached():
        output = layer(x)
    update = (output - layer.base_layer(x)).movedim(1, -1).flatten(0, -2).detach()
    assert_same_spectrum(recorder.spectra(0).values["update"]["conv"], torch.linalg.svdvals(update.double()), 1e-3)
    assert recorder.accumulators["conv"].rows == 2 * 7 * 7


def test_trained_tokens_are_no_adapter():
    model = trained(LoraConfig(r=RANK, target_modules=TARGETS, trainable_token_indices=[1, 2]))
    assert {branch.name.rpartition(".")[2] for branch in find_branches(model)} == set(TARGETS)
