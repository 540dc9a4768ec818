"""CeRA as PEFT sees it: saving, several adapters, mixed batches, refusals, dtypes, compilation."""

import copy
import json
import pickle
from collections import Counter

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from cera import CeraConfig, CeraLayer

INPUT_IDS = torch.arange(24).view(3, 8)
VOCAB = 64


def build(model_class, config):
    """The same random weights at every call, and what the test draws itself is not the same twice."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_class(config).eval()


def llama():
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        initializer_range=0.2,
    )
    return build(LlamaForCausalLM, config)


def gpt2():
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return build(GPT2LMHeadModel, GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCAB, **dropout))


def opt():
    config = OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCAB,
        dropout=0.0,
    )
    return build(OPTForCausalLM, config)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(1)


def config(**settings):
    return CeraConfig(**{"r": 4, "dropout": 0.1, "init_weights": False, "task_type": "CAUSAL_LM", **settings})


def adapted(base=None, **settings):
    """A model in eval mode with an adapter that is not a no-op."""
    return get_peft_model(base or llama(), config(**settings)).eval()


@torch.no_grad()
def logits(model, input_ids=INPUT_IDS, **kwargs):
    return model(input_ids, **kwargs).logits


def cera_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, CeraLayer)}


def shapes(model):
    """Module -> (r, in + out), by the weights themselves."""
    collected = {}
    for name, layer in cera_layers(model).items():
        (r, in_features), (out_features, same_r) = (
            branch["default"].weight.shape for branch in (layer.cera_up, layer.cera_down)
        )
        assert r == same_r
        collected[name.removeprefix("base_model.model.")] = (r, in_features + out_features)
    return collected


def gradients(model):
    output = model(input_ids=INPUT_IDS, labels=INPUT_IDS)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    return dict(zip(names, torch.autograd.grad(output.loss, parameters), strict=True))


class Mixed(nn.Module):
    """One module of each kind."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.linear = nn.Linear(4, 4)
        self.conv = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(self.linear(self.embedding(x)).mT)


# Saving and loading


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_adapter_loads_with_identical_logits(tmp_path, low_cpu_mem_usage):
    model = adapted(target_modules="all-linear", activation="gelu", scaling=1.5)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    assert not loaded.training
    assert torch.equal(logits(loaded), expected)
    assert not torch.equal(logits(llama()), expected)


def test_saved_adapter_is_safetensors_with_the_cera_weights_alone(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    state = load_file(tmp_path / "adapter_model.safetensors")
    parts = Counter(next(part for part in name.split(".") if part.startswith("cera_")) for name in state)
    assert parts == {"cera_up": 4, "cera_down": 4}  # 2 layers, queries and values
    assert sum(tensor.numel() for tensor in state.values()) == model.get_nb_trainable_parameters()[0]


def test_loaded_adapter_is_frozen_unless_asked_to_train(tmp_path):
    adapted().save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(llama(), tmp_path)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    trainable = PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True)
    assert {name for name, p in trainable.named_parameters() if p.requires_grad} == {
        name for name, _ in trainable.named_parameters() if "cera_" in name
    }


def test_state_dict_can_be_carried_to_another_model():
    source, target = adapted(), adapted()
    assert not torch.equal(logits(source), logits(target))
    state = get_peft_model_state_dict(source)
    assert all("cera_" in name and "default" not in name for name in state)
    result = set_peft_model_state_dict(target, state)
    assert not result.unexpected_keys
    assert torch.equal(logits(source), logits(target))


def test_deepcopy_is_equal_and_independent():
    model = adapted()
    expected = logits(model)
    other = copy.deepcopy(model)
    assert torch.equal(logits(other), expected)
    with torch.no_grad():
        for layer in cera_layers(other).values():
            layer.cera_down["default"].weight.zero_()
    assert torch.equal(logits(other), logits(llama()))
    assert torch.equal(logits(model), expected)


def test_adapter_can_be_injected_without_a_peft_model():
    model = inject_adapter_in_model(config(), llama()).eval()
    assert isinstance(model, LlamaForCausalLM)
    assert len(cera_layers(model)) == 4
    assert not torch.equal(logits(model), logits(llama()))


# Several adapters


@pytest.fixture
def several():
    """A model with the adapters "default" and "other", which differ in rank, targets and everything drawn."""
    model = adapted()
    model.add_adapter("other", config(r=2, scaling=3.0, activation="tanh", target_modules=["q_proj", "up_proj"]))
    return model.eval()


def by_adapter(model):
    """Adapter -> the logits it gives alone."""
    expected = {}
    for name in list(model.peft_config):
        model.set_adapter(name)
        expected[name] = logits(model)
    model.set_adapter("default")
    with model.disable_adapter():
        expected["__base__"] = logits(model)
    return expected


def test_each_adapter_gives_its_own_logits(several):
    expected = by_adapter(several)
    assert torch.equal(expected["__base__"], logits(llama()))
    assert torch.equal(logits(several), expected["default"])
    assert len({tensor.sum().item() for tensor in expected.values()}) == 3


def test_adding_an_adapter_leaves_the_active_one_alone():
    model = adapted()
    expected = logits(model)
    model.add_adapter("other", config(target_modules="all-linear"))
    assert model.active_adapter == "default"
    assert torch.equal(logits(model), expected)
    assert all(("other" in name) != p.requires_grad for name, p in model.named_parameters() if "cera_" in name)


def test_only_the_active_adapter_is_trained(several):
    several.set_adapter("other")
    assert {name for name, p in several.named_parameters() if p.requires_grad} == {
        name for name, _ in several.named_parameters() if ".other." in name
    }


def test_adapter_added_to_a_layer_is_frozen_until_it_is_active():
    layer = CeraLayer(nn.Linear(5, 4), "one", 3, config())
    layer.update_layer("two", 2, config())
    assert not layer.cera_up["two"].weight.requires_grad
    for active in ("two", "one"):
        layer.set_adapter(active)
        assert layer.active_adapters == [active]
        assert all((active in name) == p.requires_grad for name, p in layer.named_parameters() if "cera_" in name)


def test_updates_of_adapters_active_together_add_up():
    linear, x = nn.Linear(5, 4, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    layer = CeraLayer(linear, "one", 3, config())
    layer.update_layer("two", 2, config(scaling=-0.5))
    layer.eval().set_adapter(["one", "two"])
    torch.testing.assert_close(layer(x), linear(x) + layer.update(x, "one") + layer.update(x, "two"))


def test_deleting_an_adapter_leaves_no_trace_of_it(several):
    expected = by_adapter(several)
    several.delete_adapter("other")
    assert list(several.peft_config) == ["default"]
    assert not any("other" in name for name, _ in several.named_modules())
    assert not any("other" in layer.r or "other" in layer.scaling for layer in cera_layers(several).values())
    assert torch.equal(logits(several), expected["default"])


def test_disable_adapter_restores_the_base_exactly_and_only_for_the_time(several):
    expected = logits(several)
    with several.disable_adapter():
        assert torch.equal(logits(several), logits(llama()))
    assert torch.equal(logits(several), expected)


def test_adapter_added_in_eval_mode_does_not_drop():
    model = adapted(dropout=0.9)
    model.add_adapter("other", config(dropout=0.9, target_modules="all-linear"))
    model.set_adapter("other")
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


# Mixed batches


@pytest.mark.parametrize(
    "names",
    [
        ["default", "__base__", "other"],
        ["other", "default", "other"],
        ["default", "default", "default"],
        ["__base__", "__base__", "__base__"],
    ],
)
def test_rows_of_a_mixed_batch_equal_those_of_their_adapter(several, names):
    expected = by_adapter(several)
    mixed = logits(several, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], expected[name][row], rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(several), expected["default"])  # the hooks are gone again


@pytest.mark.parametrize("num_beams", [1, 2])
def test_mixed_batch_generates_as_each_adapter_does(several, num_beams):
    def generate(rows, **kwargs):
        settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        mask = torch.ones_like(rows)
        return several.generate(input_ids=rows, attention_mask=mask, num_beams=num_beams, **settings, **kwargs)

    mixed = generate(INPUT_IDS, adapter_names=["other", "__base__", "default"])
    with several.disable_adapter():
        assert torch.equal(generate(INPUT_IDS[1:2])[0], mixed[1])
    for row, name in ((0, "other"), (2, "default")):
        several.set_adapter(name)
        assert torch.equal(generate(INPUT_IDS[row : row + 1])[0], mixed[row])


def test_mixed_batch_takes_each_adapters_own_modules_to_save():
    model = adapted(modules_to_save=["lm_head"])
    model.add_adapter("other", config(modules_to_save=["lm_head"]))
    heads = model.eval().base_model.model.lm_head.modules_to_save
    with torch.no_grad():
        heads["default"].weight.mul_(2)
        heads["other"].weight.mul_(-1)
    expected = by_adapter(model)
    names = ["other", "__base__", "default"]
    mixed = logits(model, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], expected[name][row], rtol=1e-5, atol=1e-5)


def test_mixed_batch_refuses_an_unknown_adapter(several):
    with pytest.raises(ValueError, match=r"non-existing adapter.*missing"):
        logits(several, adapter_names=["default", "missing", "other"])


def test_mixed_batch_refuses_a_wrong_number_of_names(several):
    with pytest.raises(ValueError, match=r"Length of `adapter_names` .* got 2 and 3"):
        logits(several, adapter_names=["default", "other"])


def test_mixed_batch_refuses_training_mode(several):
    with pytest.raises(ValueError, match="training mode"):
        logits(several.train(), adapter_names=["default", "other", "other"])


# Removing


@pytest.mark.parametrize("method", ["merge_and_unload", "merge_adapter", "unmerge_adapter"])
def test_model_refuses_to_merge(method):
    model = adapted()
    expected = logits(model)
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        getattr(model, method)()
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("method", ["merge", "unmerge"])
def test_layer_refuses_to_merge(method):
    layer = next(iter(cera_layers(adapted()).values()))
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        getattr(layer, method)()
    assert not layer.merged


def test_unload_gives_the_base_back(several):
    expected = llama()
    base = several.unload()
    assert isinstance(base, LlamaForCausalLM)
    assert not cera_layers(base)
    assert [(n, type(m)) for n, m in base.named_modules()] == [(n, type(m)) for n, m in expected.named_modules()]
    state = expected.state_dict()
    assert base.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.state_dict().items())
    assert torch.equal(logits(base), logits(expected))


# What is adapted


def test_default_targets_are_queries_and_values():
    assert shapes(adapted()) == {
        f"model.layers.{i}.self_attn.{name}": (4, 32 + out)
        for i in (0, 1)
        for name, out in (("q_proj", 32), ("v_proj", 16))
    }


def test_trainable_parameters_are_r_times_in_plus_out():
    model = adapted(r=5, target_modules="all-linear", rank_pattern={"down_proj": 3})
    assert len(shapes(model)) == 2 * 7
    expected = sum(r * in_plus_out for r, in_plus_out in shapes(model).values())
    assert expected == 2 * (5 * (64 + 48 + 48 + 64 + 80 + 80) + 3 * 80)
    assert model.get_nb_trainable_parameters()[0] == expected


def test_rank_pattern_overrides_r_by_name_or_regex(tmp_path):
    model = adapted(rank_pattern={"v_proj": 2, r".*layers\.1\.self_attn\.q_proj": 7})
    assert {name.removeprefix("model.layers."): r for name, (r, _) in shapes(model).items()} == {
        "0.self_attn.q_proj": 4,
        "0.self_attn.v_proj": 2,
        "1.self_attn.q_proj": 7,
        "1.self_attn.v_proj": 2,
    }
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(llama(), tmp_path)), logits(model))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"exclude_modules": ["v_proj"]}, {"0.self_attn.q_proj", "1.self_attn.q_proj"}),
        ({"exclude_modules": r".*layers\.0.*"}, {"1.self_attn.q_proj", "1.self_attn.v_proj"}),
        ({"layers_to_transform": 1}, {"1.self_attn.q_proj", "1.self_attn.v_proj"}),
        ({"layers_to_transform": [0], "target_modules": ["o_proj"]}, {"0.self_attn.o_proj"}),
        (
            {"layers_to_transform": [1], "layers_pattern": "layers", "target_modules": ["up_proj"]},
            {"1.mlp.up_proj"},
        ),
        ({"target_modules": r".*0\.mlp\.(up|down)_proj"}, {"0.mlp.up_proj", "0.mlp.down_proj"}),
    ],
)
def test_target_selection(settings, expected):
    assert {name.removeprefix("model.layers.") for name in shapes(adapted(**settings))} == expected


def test_modules_to_save_are_trained_and_saved(tmp_path):
    model = adapted(modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head
    with torch.no_grad():
        head.modules_to_save["default"].weight.add_(1)
    assert head.modules_to_save["default"].weight.requires_grad
    assert not head.original_module.weight.requires_grad
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(llama(), tmp_path)), logits(model))
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama()))


@pytest.mark.parametrize("name", ["conv", "embedding"])
def test_targets_that_are_not_linear_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"target_modules matches '{name}'"):
        get_peft_model(Mixed(), CeraConfig(target_modules=["linear", name]))


def test_embedding_of_a_language_model_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'model\.embed_tokens', a Embedding"):
        adapted(target_modules=["embed_tokens"])


def test_targets_that_match_nothing_are_refused():
    with pytest.raises(ValueError, match="no_such_proj"):
        adapted(target_modules=["no_such_proj"])


@pytest.mark.parametrize(("base", "layers"), [(llama, 4), (gpt2, 2), (opt, 4)])
def test_default_targets_train_save_and_load(base, layers, tmp_path):
    model = get_peft_model(base(), CeraConfig(r=4, dropout=0.0, task_type="CAUSAL_LM")).train()
    assert len(cera_layers(model)) == layers
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss = model(input_ids=INPUT_IDS, labels=INPUT_IDS).loss
    loss.backward()
    optimizer.step()
    assert model.eval()(input_ids=INPUT_IDS, labels=INPUT_IDS).loss < loss
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base(), tmp_path)), logits(model))


# Configuration

FULL = {
    "r": 3,
    "scaling": 0.5,
    "activation": "relu",
    "dropout": 0.2,
    "target_modules": ["q_proj", "up_proj"],
    "exclude_modules": ["v_proj"],
    "layers_to_transform": [0, 1],
    "layers_pattern": "layers",
    "rank_pattern": {"q_proj": 2},
    "modules_to_save": ["lm_head"],
    "init_weights": False,
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "somewhere",
}


def test_config_defaults_are_what_the_studies_support():
    default = CeraConfig()
    assert (default.r, default.scaling, default.activation, default.dropout) == (64, 4.0, "silu", 0.0)
    assert default.target_modules is None
    assert default.init_weights is True


def test_order_of_module_names_makes_no_difference():
    assert all(
        CeraConfig(**{field: ["q_proj", "v_proj"]}) == CeraConfig(**{field: ["v_proj", "q_proj"]})
        for field in ("target_modules", "exclude_modules")
    )


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c)), lambda c: CeraConfig(**c.to_dict())]
)
def test_config_survives_copying(clone):
    original = CeraConfig(**FULL)
    other = clone(original)
    assert other == original
    assert other is not original
    other.rank_pattern["v_proj"] = 1
    assert original.rank_pattern == {"q_proj": 2}


@pytest.mark.parametrize("load", [CeraConfig.from_pretrained, PeftConfig.from_pretrained])
def test_config_survives_json(load, tmp_path):
    original = CeraConfig(**FULL)
    original.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "CERA"
    assert sorted(written["target_modules"]) == FULL["target_modules"]
    assert {name: written[name] for name in ("r", "scaling", "activation", "dropout", "rank_pattern")} == {
        name: FULL[name] for name in ("r", "scaling", "activation", "dropout", "rank_pattern")
    }
    loaded = load(tmp_path)
    assert isinstance(loaded, CeraConfig)
    assert loaded == original


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"r": 0}, "r"),
        ({"r": -1}, "r"),
        ({"r": True}, "r"),
        ({"r": 2.5}, "r"),
        ({"r": "8"}, "r"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"activation": "swish9"}, "activation"),
        ({"activation": ["silu"]}, "activation"),
        ({"dropout": "0.1"}, "dropout"),
        ({"scaling": None}, "scaling"),
        ({"rank_pattern": None}, "rank_pattern"),
        ({"activation": None}, "activation"),
        ({"scaling": float("nan")}, "scaling"),
        ({"scaling": float("inf")}, "scaling"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\]"),
        ({"rank_pattern": {"q_proj": 4, "v_proj": 1.5}}, r"rank_pattern\['v_proj'\]"),
        ({"layers_pattern": "layers"}, "layers_pattern"),
        ({"layers_to_transform": [0], "target_modules": ".*q_proj"}, "layers_to_transform"),
    ],
)
def test_bad_values_are_refused_by_field(settings, field):
    with pytest.raises(ValueError, match=rf"^CeraConfig\.{field} "):
        CeraConfig(**settings)


@pytest.mark.parametrize(
    ("name", "value"), [("r", 1), ("dropout", 0), ("dropout", 0.999), ("scaling", 0), ("scaling", -2.5)]
)
def test_values_at_the_bounds_are_accepted(name, value):
    assert getattr(CeraConfig(**{name: value}), name) == value


# Memory, compilation, dtypes


def test_gradient_checkpointing_changes_no_gradient():
    model = adapted(dropout=0.0, target_modules="all-linear").train()
    layer = next(iter(cera_layers(model).values()))
    calls = Counter()
    layer.register_forward_hook(lambda *_: calls.update(["forward"]))
    expected = gradients(model)
    assert calls["forward"] == 1
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(model), expected, rtol=0, atol=0)
    assert calls["forward"] == 3  # one more, and one again in the backward


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_layer_compiles_in_one_graph(training):
    torch._dynamo.reset()
    layer = CeraLayer(nn.Linear(6, 5), "default", 3, config(dropout=0.0, scaling=2.0))
    layer.update_layer("other", 2, config(dropout=0.0, activation="gelu"))
    layer.train(training).set_adapter(["default", "other"])
    x = torch.randn(2, 3, 6)
    assert torch._dynamo.explain(layer)(x).graph_break_count == 0
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    parameters = [p for p in layer.parameters() if p.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(compiled(x).square().sum(), parameters),
        torch.autograd.grad(layer(x).square().sum(), parameters),
    )


def test_whole_model_compiles_in_one_graph():
    torch._dynamo.reset()
    model = adapted(target_modules="all-linear")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled), logits(model))


@pytest.mark.parametrize(("autocast_adapter_dtype", "adapter_dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_bf16_base(autocast_adapter_dtype, adapter_dtype):
    base = llama().bfloat16()
    settings = config(dropout=0.0, scaling=1.0)
    model = get_peft_model(base, settings, autocast_adapter_dtype=autocast_adapter_dtype).train()
    of_adapter = gradients(model).values()
    assert {gradient.dtype for gradient in of_adapter} == {adapter_dtype}
    assert all(gradient.isfinite().all() and gradient.any() for gradient in of_adapter)

    layer = next(iter(cera_layers(model).values()))
    x = torch.randn(2, 3, 32, dtype=torch.bfloat16)
    up, down = (branch["default"].weight.float() for branch in (layer.cera_up, layer.cera_down))
    update = layer.update(x, "default")
    assert update.dtype == adapter_dtype
    precision = 8 * torch.finfo(adapter_dtype).eps  # in fp32, the branch must not round to bf16 on its way
    torch.testing.assert_close(
        update.float(), F.linear(F.silu(F.linear(x.float(), up)), down), rtol=precision, atol=precision
    )
    assert layer(x).dtype == torch.bfloat16
    assert not torch.equal(layer(x), layer.base_layer(x))


def test_autocast_runs_the_branch_in_its_own_dtype():
    model = adapted()
    layer = next(iter(cera_layers(model).values()))
    x = torch.randn(2, 3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.update(x, "default").dtype == torch.bfloat16
        assert layer(x).dtype == layer.base_layer(x).dtype == torch.bfloat16
    assert layer(x).dtype == torch.float32


def test_the_projection_inside_a_multihead_attention_is_refused():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    with pytest.raises(ValueError, match="never calls it"):
        get_peft_model(Attention(), CeraConfig(r=2, target_modules=["out_proj"]))
