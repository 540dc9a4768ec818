"""Adapters around whole modules: CeRA with granularity "module" (paper Table 3), Houlsby and Parallel (Table 4)."""

import copy
import json
import math
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from command_line import command, losses, run, two
from conftest import REPOSITORY
from fitting import fit
from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    inject_adapter_in_model,
)
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import cera
from cera import CeraConfig, CeraLayer, HoulsbyConfig, ModuleLayer, ParallelConfig, bottleneck_for
from cera.adapters import trainable_parameters
from cera.adapters.targets import MODULES, default_targets
from cera.models.backbone import build_skeleton, load_config, load_model
from cera.runs.finished import curve
from cera.spectral.hooks import find_branches
from cera.spectral.recorder import measure
from cera.training.module import CausalLM

LLAMA_3_8B = str(REPOSITORY / "configs" / "models" / "llama-3-8b")
INPUT_IDS = torch.arange(24).view(3, 8)
ADAPTERS = {
    "cera on attention": (CeraConfig, {"granularity": "module"}),
    "cera on ffn": (CeraConfig, {"granularity": "module", "target_modules": ["mlp"], "scaling": 0.5}),
    "houlsby": (HoulsbyConfig, {}),
    "houlsby on ffn": (HoulsbyConfig, {"placement": "ffn", "activation": "tanh", "scaling": 0.5}),
    "parallel on attention": (ParallelConfig, {"placement": "attention", "scaling": 1.0}),
    "parallel on ffn": (ParallelConfig, {}),
    "parallel on both": (ParallelConfig, {"placement": "both"}),
}
PLACES = {name: [m for m, w in (("self_attn", "attention"), ("mlp", "ffn")) if name.endswith((w, "both", "houlsby"))]
          for name in ADAPTERS}  # fmt: skip
PREFIXES = ("cera_", "houlsby_", "parallel_")


def is_adapter_weight(name: str) -> bool:
    return any(prefix in name for prefix in PREFIXES)


ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}
every_adapter = pytest.mark.parametrize("name", ADAPTERS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(1)


def llama():
    """The same random weights at every call."""
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def config(name, **settings):
    method, tuner = ADAPTERS[name]
    return method(**{"r": 4, "dropout": 0.0, "task_type": "CAUSAL_LM", **tuner, **settings})


def disturb(model, adapter="default"):
    """As after training: no weight of the adapter, and no bias, is what it was initialized to."""
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if is_adapter_weight(parameter_name) and f".{adapter}." in parameter_name:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def adapted(name, base=None, **settings):
    """A model in eval mode with an adapter that is not a no-op."""
    return disturb(get_peft_model(base or llama(), config(name, **settings))).eval()


@torch.no_grad()
def logits(model, input_ids=INPUT_IDS, **kwargs):
    return model(input_ids, **kwargs).logits


def layers(model, kind=ModuleLayer):
    return {name.removeprefix("base_model.model."): m for name, m in model.named_modules() if isinstance(m, kind)}


# The formula


def reference(model, name):
    """The base model with the update added by hooks of the test's own, from the weights of ``model``."""
    settings, base = model.peft_config["default"], llama()

    def add(weights):
        up, up_bias, down, down_bias = weights

        def hook(module, args, kwargs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            read = args[0] if args else kwargs["hidden_states"]
            read = hidden if isinstance(settings, HoulsbyConfig) else read
            latent = ACTIVATIONS[settings.activation](F.linear(read, up, up_bias))
            hidden = hidden + settings.scaling * F.linear(latent, down, down_bias)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    adapted_layers = layers(model)
    assert set(adapted_layers) == {f"model.layers.{i}.{place}" for i in (0, 1) for place in PLACES[name]}
    for module, layer in adapted_layers.items():
        up, down = layer.branch_up["default"], layer.branch_down["default"]
        hook = add((up.weight, up.bias, down.weight, down.bias))
        base.get_submodule(module).register_forward_hook(hook, with_kwargs=True)
    return base


@every_adapter
def test_outputs_and_gradients_are_those_of_the_formula(name):
    model = adapted(name)
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert all(
        ("bias" in n) <= (config(name).method == "HOULSBY") for n, p in model.named_parameters() if is_adapter_weight(n)
    )
    outputs = [m(input_ids=INPUT_IDS, labels=INPUT_IDS) for m in (model, reference(model, name))]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
    assert not torch.allclose(outputs[0].logits, logits(llama()), atol=1e-2)
    gradients = [torch.autograd.grad(output.loss, parameters) for output in outputs]
    assert all(g.abs().max() > 0 for g in gradients[0])
    torch.testing.assert_close(*gradients)


@every_adapter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_new_adapter_is_an_exact_no_op(tiny_llama, name, dtype, training):
    base = load_model(tiny_llama, dtype)
    expected = base(INPUT_IDS).logits
    model = get_peft_model(base, config(name, dropout=0.5)).train(training)
    assert torch.equal(model(INPUT_IDS).logits, expected)
    assert not torch.equal(disturb(model)(INPUT_IDS).logits, expected)


def test_houlsbys_weights_start_near_zero():
    layer = ModuleLayer(nn.Sequential(nn.Linear(300, 300)), "one", 200, HoulsbyConfig(init_weights=False), 300)
    for linear in (layer.branch_up["one"], layer.branch_down["one"]):
        # a normal distribution cut off at two deviations has 0.88 of its deviation
        assert linear.weight.std().item() == pytest.approx(0.0088, rel=0.02)
        assert 0.0195 < linear.weight.abs().max() <= 0.02
        assert not linear.bias.any()
    layer.update_layer("two", 200, HoulsbyConfig())
    assert layer.branch_up["two"].weight.std().item() == pytest.approx(0.0088, rel=0.02)
    assert not layer.branch_down["two"].weight.any()


def test_dropout_is_on_the_latent_and_in_training_only():
    model = adapted("parallel on ffn", dropout=0.5)
    assert torch.equal(logits(model), logits(model))
    assert not torch.equal(logits(model.train()), logits(model))


def test_tuples_and_keywords_pass_through():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.is_causal = True

        def forward(self, hidden_states, scale=1.0):
            return self.linear(hidden_states) * scale, "weights", None

    base, x = Attention(), torch.randn(2, 3, 4)
    layer = ModuleLayer(base, "default", 2, ParallelConfig(init_weights=False), 4)
    hidden, *rest = layer(hidden_states=x, scale=3.0)
    assert rest == ["weights", None]
    torch.testing.assert_close(hidden, base.linear(x) * 3 + layer.update(x, "default"))
    assert torch.equal(layer(x, 3.0)[0], hidden)
    assert layer.is_causal is True
    assert layer.linear is base.linear
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        layer.nothing  # noqa: B018
    with pytest.raises(TypeError, match="without hidden states"):
        layer(scale=3.0)


# Training


@every_adapter
def test_loss_falls_and_the_adapter_alone_is_trained(tiny_llama, tmp_path, name):
    adapter = config(name, r=8, dropout=0.1)
    made, *_ = fit(
        tiny_llama, tmp_path, [], adapter=adapter, max_steps=12, val_check_interval=12, num_sanity_val_steps=-1
    )
    perplexity = curve(tmp_path / "metrics.csv", "val/perplexity")
    assert perplexity[12] < 0.9 * perplexity[0], perplexity
    frozen = AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict()
    with made.model.disable_adapter():
        expected = load_model(tiny_llama, torch.float32)(INPUT_IDS).logits
        assert torch.equal(made.model.eval()(INPUT_IDS).logits, expected)
    assert torch.equal(made.model.base_model.model.model.embed_tokens.weight, frozen["model.embed_tokens.weight"])


@every_adapter
def test_gradient_checkpointing_changes_no_gradient(name):
    model = adapted(name).train()
    layer = next(iter(layers(model).values()))
    calls = Counter()
    layer.register_forward_pre_hook(lambda *_: calls.update(["forward"]))

    def gradients():
        loss = model(input_ids=INPUT_IDS, labels=INPUT_IDS).loss
        return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(), expected, rtol=0, atol=0)
    assert calls["forward"] == 3


# Saving and loading


@every_adapter
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_adapter_loads_with_identical_logits(tmp_path, name, low_cpu_mem_usage):
    model = adapted(name)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in state.values()) == model.get_nb_trainable_parameters()[0]
    loaded = PeftModel.from_pretrained(llama(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(logits(loaded), expected)
    assert not torch.equal(logits(llama()), expected)
    loaded.load_adapter(tmp_path, "again")
    loaded.set_adapter("again")
    assert torch.equal(logits(loaded), expected)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copy_is_equal_and_independent(clone):
    model = adapted("houlsby")
    expected = logits(model)
    other = clone(model)
    assert torch.equal(logits(other), expected)
    disturb(other)
    assert torch.equal(logits(model), expected)


def test_adapter_can_be_injected_without_a_peft_model():
    model = disturb(inject_adapter_in_model(config("parallel on ffn"), llama())).eval()
    assert isinstance(model, LlamaForCausalLM)
    assert len(layers(model)) == 2
    assert not torch.equal(logits(model), logits(llama()))


@pytest.mark.parametrize("name", ["houlsby", "parallel on attention"])
def test_modules_to_save_are_trained_and_saved(tmp_path, name):
    model = adapted(name, modules_to_save=["lm_head"])
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.add_(1)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(llama(), tmp_path)), logits(model))
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama()))


# Several adapters

OTHER = {"houlsby": {"placement": "attention"}, "parallel on ffn": {"placement": "both"}, "cera on attention": {}}


def several(name):
    """A model with the adapters "default" and "other", which differ in all that can differ."""
    model = adapted(name)
    other = config(name, r=2, activation="tanh", scaling=3.0, **OTHER[name])
    model.add_adapter("other", other)
    return disturb(model, "other").eval()


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


@pytest.mark.parametrize("name", OTHER)
def test_adapters_are_switched_disabled_and_deleted(name):
    model = several(name)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if ".default." in n
    }
    expected = by_adapter(model)
    assert torch.equal(expected["__base__"], logits(llama()))
    assert len({tensor.sum().item() for tensor in expected.values()}) == 3
    assert torch.equal(logits(model), expected["default"])
    model.delete_adapter("other")
    assert not any("other" in n for n, _ in model.named_modules())
    assert torch.equal(logits(model), expected["default"])
    base = model.unload()
    assert [(n, type(m)) for n, m in base.named_modules()] == [(n, type(m)) for n, m in llama().named_modules()]
    assert torch.equal(logits(base), expected["__base__"])


@pytest.mark.parametrize("sequential", [False, True])
def test_updates_of_adapters_active_together_add_up(sequential):
    method = HoulsbyConfig if sequential else ParallelConfig
    base, x = nn.Sequential(nn.Linear(5, 5, dtype=torch.float64), nn.Tanh()), torch.randn(2, 3, 5, dtype=torch.float64)
    layer = ModuleLayer(base, "one", 3, method(init_weights=False), 5)
    layer.update_layer("two", 2, method(scaling=-0.5, init_weights=False))
    layer.eval().set_adapter(["one", "two"])
    read = base(x) if sequential else x
    torch.testing.assert_close(layer(x), base(x) + layer.update(read, "one") + layer.update(read, "two"))


@pytest.mark.parametrize("module_level_first", [False, True])
def test_weight_level_and_module_level_cera_on_one_model(tmp_path, module_level_first):
    names = ["q_proj", "v_proj", "up_proj"]
    configs = {
        "weight": CeraConfig(r=3, target_modules=names, rank_pattern={"model.layers.0.self_attn.v_proj": 2}),
        "module": CeraConfig(r=4, granularity="module", target_modules=["self_attn", "mlp"]),
    }
    order = ["module", "weight"] if module_level_first else ["weight", "module"]
    model = get_peft_model(llama(), configs[order[0]], adapter_name=order[0])
    model.add_adapter(order[1], configs[order[1]])
    for name in order:
        disturb(model, name)
    model.eval()
    assert {len(layers(model)), len(layers(model, CeraLayer))} == {4, 6}
    assert layers(model.base_model.model.model.layers[0], CeraLayer)["self_attn.base_layer.v_proj"].r == {"weight": 2}
    alone = {}
    for name in order:
        model.set_adapter(name)
        alone[name] = logits(model)
        model.save_pretrained(tmp_path, selected_adapters=[name])
        state = load_file(tmp_path / name / "adapter_model.safetensors")
        assert not any("base_layer" in key for key in state)
        loaded = PeftModel.from_pretrained(llama(), tmp_path / name)
        assert torch.equal(logits(loaded), alone[name])
        model.load_adapter(tmp_path / name, f"{name} again")
        model.set_adapter(f"{name} again")
        assert torch.equal(logits(model), alone[name])
    model.base_model.set_adapter(order)
    together = logits(model)
    assert not any(torch.allclose(together, tensor) for tensor in alone.values())
    assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == {"weight", "module"}
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama()))
    names_of_rows = ["module", "__base__", "weight"]
    mixed = logits(model, adapter_names=names_of_rows)
    for row, name in enumerate(names_of_rows):
        expected = alone[name][row] if name in alone else logits(llama())[row]
        torch.testing.assert_close(mixed[row], expected, rtol=1e-5, atol=1e-5)
    base = model.unload()
    assert [(n, type(m)) for n, m in base.named_modules()] == [(n, type(m)) for n, m in llama().named_modules()]
    assert torch.equal(logits(base), logits(llama()))


@pytest.mark.parametrize("name", OTHER)
def test_rows_of_a_mixed_batch_equal_those_of_their_adapter(name):
    model = several(name)
    expected = by_adapter(model)
    names = ["other", "__base__", "default"]
    mixed = logits(model, adapter_names=names)
    for row, adapter in enumerate(names):
        torch.testing.assert_close(mixed[row], expected[adapter][row], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"got 2 and 3"):
        logits(model, adapter_names=["default", "other"])
    with pytest.raises(ValueError, match="non-existing adapter"):
        logits(model, adapter_names=["default", "other", "missing"])


@every_adapter
def test_generation_with_a_cache_equals_that_without(name):
    model = adapted(name)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    settings["attention_mask"] = torch.ones_like(INPUT_IDS)
    with_cache, without = (model.generate(input_ids=INPUT_IDS, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(with_cache, without)
    with model.disable_adapter():
        assert not torch.equal(model.generate(input_ids=INPUT_IDS, **settings), with_cache)
    if name == "houlsby":
        mixed = model.generate(input_ids=INPUT_IDS, adapter_names=["default", "__base__", "default"], **settings)
        assert torch.equal(mixed[[0, 2]], with_cache[[0, 2]])


def test_attention_weights_and_hidden_states_can_still_be_asked_for():
    model = adapted("houlsby")
    model.base_model.model.set_attn_implementation("eager")
    output = model(INPUT_IDS, output_attentions=True, output_hidden_states=True)
    assert [a.shape for a in output.attentions] == 2 * [(3, 4, 8, 8)]
    assert len(output.hidden_states) == 3


@pytest.mark.parametrize("method", ["merge_and_unload", "merge_adapter", "unmerge_adapter"])
@pytest.mark.parametrize("name", ["cera on attention", "houlsby", "parallel on ffn"])
def test_merging_is_refused(name, method):
    model = adapted(name)
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        getattr(model, method)()
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        next(iter(layers(model).values())).merge()


# Number of parameters


def formula(name, r, hidden, number):
    """Parameters of an adapter of width r on a model of ``number`` layers."""
    biases = r + hidden if "houlsby" in name else 0
    return number * len(PLACES[name]) * (2 * r * hidden + biases)


@every_adapter
@pytest.mark.parametrize("budget", [27_262_976, 54_525_952, 54_525_951])
def test_bottleneck_that_matches_a_budget(name, budget):
    llama_3 = load_config(LLAMA_3_8B)
    r = bottleneck_for(budget, config(name), llama_3)
    assert formula(name, r, 4096, 32) <= budget < formula(name, r + 1, 4096, 32)
    model = get_peft_model(build_skeleton(LLAMA_3_8B), config(name, r=r), low_cpu_mem_usage=True)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.get_nb_trainable_parameters()[0] == formula(name, r, 4096, 32)


def test_module_level_cera_that_matches_the_papers():
    """Table 3 compares granularities at r=128: queries and values of Llama-3-8B have r * 425,984 parameters."""
    paper = trainable_parameters(CeraConfig(r=128), load_config(LLAMA_3_8B))
    assert paper == 54_525_952
    assert bottleneck_for(paper, CeraConfig(granularity="module"), load_config(LLAMA_3_8B)) == 208
    assert paper == 32 * 2 * 4096 * 208


def test_bottleneck_counts_whatever_else_the_configuration_trains():
    base = llama()
    adapter = config("houlsby", rank_pattern={"mlp": 3}, modules_to_save=["lm_head"], layers_to_transform=[1])
    fixed = 32 * 64 + (2 * 3 * 32 + 3 + 32) + 32
    assert bottleneck_for(fixed + 7 * 65, adapter, base) == 7
    assert bottleneck_for(fixed + 8 * 65 - 1, adapter, base) == 7
    assert adapter.r == 4
    assert bottleneck_for(fixed + 7 * 65, adapter, base.config) == 7


@pytest.mark.parametrize(("adapter", "per_rank"), [(CeraConfig(), 112), (LoraConfig(target_modules=["q_proj"]), 64)])
def test_bottleneck_of_weight_level_adapters(adapter, per_rank):
    assert bottleneck_for(2 * per_rank * 5 + 1, adapter, llama()) == 5


def test_a_budget_that_is_too_small_is_refused():
    with pytest.raises(
        ValueError, match=r"ParallelConfig trains 128 parameters of this model at r=1: more than .* 127"
    ):
        bottleneck_for(127, config("parallel on ffn"), llama())


# What is adapted


def tiny(model_type):
    """A small random model of the family."""
    shape = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    if model_type == "gpt2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}
    elif model_type == "gemma3":
        vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        vision |= {"image_size": 28, "patch_size": 14}
        shape = {
            "text_config": {**shape, "query_pre_attn_scalar": 8},
            "vision_config": vision,
            "mm_tokens_per_image": 4,
        }
    elif "moe" in model_type or model_type == "mixtral":
        shape |= {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        shape |= {"shared_expert_intermediate_size": 16}
    torch.manual_seed(0)
    settings = AutoConfig.for_model(model_type, **shape)
    return AutoModelForCausalLM.from_config(settings).eval()


@pytest.mark.parametrize("model_type", MODULES)
def test_families(model_type, tmp_path):
    ids = INPUT_IDS % 60 + 1
    expected = logits(tiny(model_type), ids)
    attention, ffn = MODULES[model_type]
    for method, places in ((HoulsbyConfig, {attention, ffn}), (ParallelConfig, {ffn}), (CeraConfig, {attention})):
        options = {"granularity": "module"} if method is CeraConfig else {}
        adapter = method(r=4, dropout=0.0, task_type="CAUSAL_LM", **options)
        model = get_peft_model(tiny(model_type), adapter).eval()
        assert {name.rpartition(".")[2] for name in layers(model)} == places
        assert len(layers(model)) == 2 * len(places)  # none in a tower for images, none in an expert
        assert torch.equal(logits(model, ids), expected)
        model.train()(input_ids=ids, labels=ids).loss.backward()
        down = [p.grad for n, p in model.named_parameters() if "_down" in n]
        assert all(gradient.any() for gradient in down)
        disturb(model).eval().save_pretrained(tmp_path / method.__name__)
        loaded = PeftModel.from_pretrained(tiny(model_type), tmp_path / method.__name__).eval()
        assert torch.equal(logits(loaded, ids), logits(model, ids))
        assert not torch.equal(logits(loaded, ids), expected)


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match=r"model type 'bert' are not known: name them in target_modules\. Known are"):
        default_targets("bert", "both")
    with pytest.raises(ValueError, match="model type 'custom' are not known"):
        get_peft_model(nn.Sequential(nn.Linear(3, 3)), HoulsbyConfig())


def test_a_model_without_a_width_is_refused():
    model = nn.ModuleDict({"block": nn.Sequential(nn.Linear(3, 3))})
    with pytest.raises(ValueError, match="needs a model whose config has hidden_size"):
        get_peft_model(model, HoulsbyConfig(target_modules=["block"]))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"layers_to_transform": 1}, {"1.self_attn": 4, "1.mlp": 4}),
        ({"layers_to_transform": [0], "target_modules": ["mlp"]}, {"0.mlp": 4}),
        ({"exclude_modules": r".*\.0\..*"}, {"1.self_attn": 4, "1.mlp": 4}),
        ({"target_modules": r".*\.1\.mlp"}, {"1.mlp": 4}),
        (
            {"rank_pattern": {"mlp": 2, r".*0\.self_attn": 7}},
            {"0.self_attn": 7, "0.mlp": 2, "1.self_attn": 4, "1.mlp": 2},
        ),
    ],
)
def test_target_selection(settings, expected):
    adapted_layers = layers(adapted("houlsby", **settings))
    assert {
        name.removeprefix("model.layers."): layer.r["default"] for name, layer in adapted_layers.items()
    } == expected


@pytest.mark.parametrize("target", ["q_proj", "embed_tokens", "layers", "input_layernorm"])
def test_what_is_no_module_of_hidden_states_is_refused_by_name(target):
    with pytest.raises(ValueError, match=rf"^CeraConfig\.target_modules matches '.*{target}'.* whole module"):
        get_peft_model(llama(), CeraConfig(granularity="module", target_modules=[target]))


def test_weight_level_refuses_whole_modules():
    with pytest.raises(ValueError, match=r"'model\.layers\.0\.self_attn', a LlamaAttention.*granularity='module'"):
        get_peft_model(llama(), CeraConfig(target_modules=["self_attn"]))


def test_the_trainer_counts_and_refuses(tiny_llama):
    assert CausalLM(tiny_llama, HoulsbyConfig(r=4)).check() == formula("houlsby", 4, 64, 4)
    assert CausalLM(tiny_llama, ParallelConfig(r=4)).check() == formula("parallel on ffn", 4, 64, 4)
    with pytest.raises(ValueError, match="'self_atn' matches nothing"):
        CausalLM(tiny_llama, HoulsbyConfig(target_modules=["self_atn"])).check()


# Configuration


@pytest.mark.parametrize("method", ["HOULSBY", "PARALLEL"])
def test_peft_knows_the_methods(method):
    name = method.capitalize()
    assert PeftType(method) is getattr(PeftType, method) is pickle.loads(pickle.dumps(PeftType[method]))
    assert PEFT_TYPE_TO_CONFIG_MAPPING[method] is getattr(cera, f"{name}Config")
    assert PEFT_TYPE_TO_TUNER_MAPPING[method] is getattr(cera, f"{name}Model")


@every_adapter
def test_config_survives_json(name, tmp_path):
    original = config(name, layers_to_transform=[1], rank_pattern={"mlp": 3})
    original.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == original.method
    assert PeftConfig.from_pretrained(tmp_path) == original


def test_defaults():
    houlsby, parallel = HoulsbyConfig(), ParallelConfig()
    assert (houlsby.activation, houlsby.placement, houlsby.scaling, houlsby.init_std) == ("gelu", "both", 1.0, 0.01)
    assert (parallel.activation, parallel.placement, parallel.scaling) == ("relu", "ffn", 4.0)
    assert (houlsby.r, houlsby.dropout, parallel.r, parallel.dropout) == (64, 0.0, 64, 0.0)
    assert CeraConfig().granularity == "weight"


@pytest.mark.parametrize(
    ("method", "settings", "field"),
    [
        (CeraConfig, {"granularity": "layer"}, "granularity"),
        (CeraConfig, {"granularity": None}, "granularity"),
        (HoulsbyConfig, {"r": 0}, "r"),
        (HoulsbyConfig, {"placement": "mlp"}, "placement"),
        (HoulsbyConfig, {"init_std": 0}, "init_std"),
        (HoulsbyConfig, {"init_std": float("inf")}, "init_std"),
        (ParallelConfig, {"placement": ["ffn"]}, "placement"),
        (ParallelConfig, {"dropout": 1.0}, "dropout"),
        (ParallelConfig, {"scaling": float("nan")}, "scaling"),
    ],
)
def test_bad_values_are_refused_by_field(method, settings, field):
    with pytest.raises(ValueError, match=rf"^{method.__name__}\.{field} must be "):
        method(**settings)


# Dtypes, compilation, quantized bases


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
@pytest.mark.parametrize("name", ["cera on attention", "houlsby"])
def test_half_precision_base(name, dtype, autocast_adapter_dtype):
    base = llama().to(dtype)
    model = get_peft_model(base, config(name), autocast_adapter_dtype=autocast_adapter_dtype)
    expected = torch.float32 if autocast_adapter_dtype else dtype
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {expected}
    disturb(model).train()(input_ids=INPUT_IDS, labels=INPUT_IDS).loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g.dtype == expected and g.isfinite().all() and g.any() for g in gradients)
    layer = next(iter(layers(model).values()))
    seen = {}
    layer.register_forward_hook(lambda _, args, output: seen.update(dtype=output[0].dtype))
    logits(model)
    assert seen["dtype"] == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert logits(model).isfinite().all()


@every_adapter
def test_whole_model_compiles_in_one_graph(name):
    torch._dynamo.reset()
    model = adapted(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled), logits(model))


@pytest.mark.parametrize("name", ["cera on attention", "houlsby", "parallel on ffn"])
def test_beside_quantized_modules(tiny_llama, name):
    pytest.importorskip("bitsandbytes")
    base = load_model(tiny_llama, torch.bfloat16, quantization="nf4")
    expected = logits(base)
    model = get_peft_model(base, config(name)).train()
    assert torch.equal(logits(model), expected)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    disturb(model)(input_ids=INPUT_IDS, labels=INPUT_IDS).loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters() if p.requires_grad)


# Spectra


@every_adapter
def test_spectra_are_those_of_the_output_minus_the_bases(tiny_llama, name):
    model = disturb(get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config(name, r=8))).eval()
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[1, 25:] = False
    batch = {
        "input_ids": torch.randint(0, 1000, (3, 40)), "position_ids": torch.arange(40).repeat(3, 1), "tokens": mask,
    }  # fmt: skip
    adapted_layers = measure(model, [batch], ["update", "latent", "weight"])
    assert len(adapted_layers.values["update"]) == len(adapted_layers.values["latent"]) == 4 * len(PLACES[name])
    assert set(adapted_layers.ranks.values()) == {8}
    target = f"model.layers.1.{PLACES[name][0]}"
    layer = model.get_submodule(f"base_model.model.{target}")
    seen = {}

    def keep(key):
        def hook(module, args, output):
            seen[key] = output[0] if isinstance(output, tuple) else output

        return hook

    layer.base_layer.register_forward_hook(keep("base"))
    layer.register_forward_hook(keep("all"))
    layer.branch_activation["default"].register_forward_hook(keep("latent"))
    logits(model, batch["input_ids"], position_ids=batch["position_ids"])
    for quantity, rows in (("update", seen["all"] - seen["base"]), ("latent", seen["latent"])):
        expected = np.linalg.svd(rows[mask].double().numpy(), compute_uv=False)
        measured = adapted_layers.values[quantity][target].numpy()
        assert len(measured) >= 8
        count = min(len(measured), len(expected))
        np.testing.assert_allclose(measured[:count], expected[:count], rtol=1e-3, atol=1e-5 * expected[0])
        assert not measured[count:].any()


def test_linear_module_level_cera_has_a_weight(tiny_llama):
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model = disturb(get_peft_model(base, config("cera on attention", activation="identity", scaling=0.5)))
    branch = find_branches(model)[0]
    assert branch.name == "model.layers.0.self_attn"
    layer = next(iter(layers(model).values()))
    torch.testing.assert_close(0.5 * branch.down @ branch.up, 0.5 * layer.branch_down["default"].weight @ branch.up)
    assert math.prod(branch.up.shape) == 4 * 64
    biased = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config("houlsby", activation="identity"))
    assert find_branches(biased)[0].up is None


# Several processes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["houlsby", "cera on attention"])
def test_zero3_in_two_processes_equals_one(tiny_llama, tmp_path, name):
    arguments = {"dropout": 0, "target_modules": "null", "granularity": "module"}
    if name == "houlsby":
        arguments = {"dropout": 0, "target_modules": "null", "init_std": 0.1}
    options = ["--model.adapter=cera.HoulsbyConfig"] if name == "houlsby" else []
    options += [f"--model.adapter.init_args.{key}={value}" for key, value in arguments.items()]
    options += ["--trainer.precision=bf16-true"]
    run(command(tiny_llama, tmp_path / "one", *options, "--data.batch_size=4"))
    run(command(tiny_llama, tmp_path / "two", *options, *two("zero3")))
    alone, together = tmp_path / "one" / "test", tmp_path / "two" / "test"
    for column in ("train/loss", "val/perplexity"):
        expected = losses(alone, column)
        assert losses(together, column) == pytest.approx(expected, rel=5e-3)
    values = list(losses(alone, "val/perplexity").values())
    assert values[-1] < values[0]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), together / "adapter")
    assert len(layers(loaded)) == 4 * len(PLACES[name])
    assert all(p.any() for n, p in loaded.named_parameters() if is_adapter_weight(n))
    run([*command(tiny_llama, tmp_path / "two", *options, *two("zero3")), "--ckpt_path=last"])
