"""A LoRA read as CeRA: the same outputs, beside CeRA in one batch, and refused by name where it is more than a LoRA."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import cera
from cera.adapters import CeraLayer
from cera.runs.adapter_settings import AdapterError

IDS = torch.arange(24).view(3, 8)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(1)


def llama():
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def gpt2():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64)).eval()


@torch.no_grad()
def logits(model, **kwargs):
    return model(IDS, **kwargs).logits


def save_lora(folder, base=llama, **settings):
    """Save a LoRA whose B is not zero, and return the logits of the model with it."""
    settings = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], **settings}
    model = get_peft_model(base(), LoraConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return logits(model)


KINDS = {
    "plain": {},
    "dropout": {"lora_dropout": 0.5},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "rank pattern": {"rank_pattern": {"v_proj": 2, r"layers\.1\.self_attn\.q_proj": 7}},
    "alpha pattern": {"alpha_pattern": {"layers.0.self_attn.q_proj": 5, "v_proj": 1}},
    "all patterns": {
        "use_rslora": True,
        "rank_pattern": {"up_proj": 9},
        "alpha_pattern": {"up_proj": 2, "o_proj": 16},
        "target_modules": "all-linear",
    },
    "regex": {"target_modules": r".*\.1\..*(q|down)_proj"},
    "some layers": {"layers_to_transform": [1]},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_outputs_are_the_loras(settings, tmp_path):
    expected = save_lora(tmp_path, **settings)
    model = cera.load_lora_as_cera(llama(), tmp_path)
    assert not model.training
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "cera_" in name)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    assert (logits(llama()) - expected).abs().max() > 0.1
    for layer in model.modules():  # negative controls: other activations, and x / 2, are not the LoRA
        if isinstance(layer, CeraLayer):
            layer.branch_activation["default"] = nn.SiLU()
    assert (logits(model) - expected).abs().max() > 1e-2
    for layer in model.modules():
        if isinstance(layer, CeraLayer):
            layer.branch_activation["default"] = nn.Identity()
            layer.scaling["default"] /= 2
    assert (logits(model) - expected).abs().max() > 1e-2


def test_conv1d_of_gpt2(tmp_path):
    expected = save_lora(tmp_path, gpt2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    torch.testing.assert_close(logits(cera.load_lora_as_cera(gpt2(), tmp_path)), expected, rtol=1e-5, atol=1e-5)


def test_dtype_is_as_in_load_adapter(tmp_path):
    save_lora(tmp_path)
    for autocast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        model = cera.load_lora_as_cera(llama().to(torch.bfloat16), tmp_path, autocast_adapter_dtype=autocast)
        assert {p.dtype for name, p in model.named_parameters() if "cera_" in name} == {dtype}


def test_lora_and_cera_in_one_batch(tmp_path):
    """Each row is what PEFT gives for its adapter alone."""
    loras = {
        "lora2": save_lora(tmp_path / "lora2", r=2, target_modules=["q_proj"]),
        "lora6": save_lora(tmp_path / "lora6", r=6, target_modules=["v_proj", "up_proj"]),
    }
    trained = get_peft_model(llama(), cera.CeraConfig(r=5, init_weights=False, target_modules=["q_proj", "v_proj"]))
    trained.eval().save_pretrained(tmp_path / "cera")
    expected = {**loras, "silu": logits(trained), "__base__": logits(llama())}
    model = PeftModel.from_pretrained(llama(), tmp_path / "cera", adapter_name="silu")
    for name in loras:
        assert cera.load_lora_as_cera(model, tmp_path / name, name) is model
    assert model.active_adapter == "silu"
    torch.testing.assert_close(logits(model), expected["silu"])
    for names in (["lora2", "silu", "lora6"], ["__base__", "lora6", "lora2"], ["silu", "lora2", "__base__"]):
        mixed = logits(model, adapter_names=names)
        for row, name in enumerate(names):
            torch.testing.assert_close(mixed[row], expected[name][row], rtol=1e-5, atol=1e-5)
            others = [other for other in expected if other != name]
            assert all((mixed[row] - expected[other][row]).abs().max() > 1e-2 for other in others)


def test_it_is_an_ordinary_adapter_afterwards(tmp_path):
    expected = save_lora(tmp_path / "lora", **KINDS["all patterns"])
    cera.load_lora_as_cera(llama(), tmp_path / "lora").save_pretrained(tmp_path / "cera")
    model = PeftModel.from_pretrained(llama(), tmp_path / "cera")
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


# Refused


def edit_settings(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(folder, change):
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora=True has no counterpart"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices=\[1\]"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters="),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication="),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens="),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the weights of the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' changes the weights of the base"),
        ({"a_later_variant": True}, "a_later_variant=True has no counterpart"),
        ({"peft_type": "ADALORA"}, "peft_type must be 'LORA', got 'ADALORA'"),
        ({"peft_type": "CERA"}, "peft_type must be 'LORA', got 'CERA'"),
        ({"r": 5}, r"lora_A\.weight has the shape \(4, 32\), and must have \(5, 32\)"),
        ({"r": "four"}, "r must be int"),
        ({"target_modules": ["q_proj"]}, "has 4 that are not of this adapter"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj"]}, r"lacks 4 of the 12 .*k_proj\.lora_A\.weight"),
        ({"target_modules": ["nothing"]}, "adapter_config.json"),
        ({"target_modules": ["q_proj", "v_proj", "embed_tokens"]}, "adapter_config.json.*embed_tokens"),
    ],
)
@pytest.mark.parametrize("beside_cera", [False, True])
def test_what_is_no_such_lora_is_refused_and_leaves_the_model_alone(tmp_path, settings, message, beside_cera):
    save_lora(tmp_path)
    right = (tmp_path / "adapter_config.json").read_text()
    edit_settings(tmp_path, **settings)
    model = llama()
    if beside_cera:
        model = get_peft_model(model, cera.CeraConfig(r=3, init_weights=False, target_modules=["o_proj"])).eval()
    before, names = logits(model), [name for name, _ in model.named_modules()]
    with pytest.raises(AdapterError, match=message):
        cera.load_lora_as_cera(model, tmp_path, "tenant")
    assert [name for name, _ in model.named_modules()] == names
    assert "tenant" not in getattr(model, "peft_config", {})
    assert hasattr(model, "peft_config") == beside_cera
    assert torch.equal(logits(model), before)
    (tmp_path / "adapter_config.json").write_text(right)
    cera.load_lora_as_cera(model, tmp_path, "tenant")  # nothing of the first try is in the way


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(next(n for n in w if "lora_B" in n)), r"lacks 1 of the 8 .*lora_B\.weight"),
        (
            lambda w: w.update({n.replace("s.0.", "s.9."): w[n].clone() for n in list(w)}),
            r"has 4 that are not .*layers\.9",
        ),
        (lambda w: w.update({"base_model.model.lm_head.weight": torch.zeros(64, 32)}), "lm_head.weight is no lora_A"),
        (lambda w: w.update({next(iter(w)): torch.zeros(9, 9)}), r"has the shape \(9, 9\)"),
        (lambda w: w[next(iter(w))].fill_(float("nan")), "NaN or infinite"),
        (lambda w: w.update({n: w[n].to(torch.int8) for n in list(w)[:1]}), "is torch.int8"),
    ],
)
def test_other_weights_than_the_configurations_are_refused(tmp_path, change, message):
    save_lora(tmp_path)
    edit_weights(tmp_path, change)
    model = llama()
    before = copy.deepcopy(model).state_dict()
    with pytest.raises(AdapterError, match=message):
        cera.load_lora_as_cera(model, tmp_path)
    assert model.state_dict().keys() == before.keys()


def test_a_pickle_is_refused(tmp_path):
    save_lora(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterError, match="is a pickle"):
        cera.load_lora_as_cera(llama(), tmp_path)


def test_models_that_cannot_take_it_are_refused(tmp_path):
    save_lora(tmp_path)
    with pytest.raises(ValueError, match="has adapters of the method LORA"):
        cera.load_lora_as_cera(PeftModel.from_pretrained(llama(), tmp_path), tmp_path, "other")
    model = cera.load_lora_as_cera(llama(), tmp_path, "one")
    with pytest.raises(ValueError, match="has an adapter 'one' already"):
        cera.load_lora_as_cera(model, tmp_path, "one")
