"""CeRA on the default targets of each architecture: no-op, training, saving, disabling, sizes, generation, spectra."""

import pytest
import torch
from families import INPUT_IDS, LLAMA, MOE, SETTINGS, build
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from cera import CeraConfig
from cera.adapters import CeraLayer
from cera.spectral import SpectrumAccumulator
from cera.spectral.hooks import find_branches

R = 4
HIDDEN, KEYS = 32, 16
# model_type -> the width of each default target's output; the width of its input is HIDDEN in all
SPLIT = {"q_proj": HIDDEN, "v_proj": KEYS}
OUT = dict.fromkeys(SETTINGS, SPLIT) | {
    "phi": {"q_proj": HIDDEN, "v_proj": HIDDEN},
    "phi3": {"qkv_proj": HIDDEN + 2 * KEYS},
    "gpt2": {"c_attn": 3 * HIDDEN},
    "gpt_neox": {"query_key_value": 3 * HIDDEN},
}


@torch.no_grad()
def logits(model):
    return model.eval()(INPUT_IDS).logits


def adapted(model_type, **settings):
    torch.manual_seed(1)
    return get_peft_model(build(model_type), CeraConfig(**{"r": R, "task_type": "CAUSAL_LM", **settings}))


@pytest.mark.parametrize("model_type", SETTINGS)
def test_family(model_type, tmp_path):
    base = logits(build(model_type))
    model = adapted(model_type)

    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, CeraLayer)}
    assert names == set(OUT[model_type])
    assert model.get_nb_trainable_parameters()[0] == 2 * R * sum(HIDDEN + out for out in OUT[model_type].values())

    assert torch.equal(logits(model), base)

    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(10):
        loss = model(input_ids=INPUT_IDS, labels=INPUT_IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1

    trained = logits(model)
    assert not torch.equal(trained, base)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)

    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(build(model_type), tmp_path)), trained)

    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    ids = model.generate(input_ids=INPUT_IDS[:1], attention_mask=torch.ones(1, 8), **settings)
    assert ids.shape == (1, 12)
    assert ids[0, 8] == trained[0, -1].index_fill(0, torch.tensor(2), -torch.inf).argmax()


@pytest.mark.parametrize("model_type", SETTINGS)
def test_spectra_of_every_branch(model_type):
    model = adapted(model_type, init_weights=False)
    branches = find_branches(model)
    assert len(branches) == 2 * len(OUT[model_type])
    for branch in branches:
        out = OUT[model_type][branch.name.rpartition(".")[2]]
        assert branch.down.shape == (out, R)
        stream = SpectrumAccumulator()
        handles = branch.attach(lambda z, stream=stream: stream.update(z))
        logits(model)
        for handle in handles:
            handle.remove()
        assert (branch.spectra(stream, ["update"])["update"] > 0).sum() == R


@pytest.mark.parametrize("model_type", ["gpt2", "phi3", "gpt_neox"])
def test_the_branch_of_a_fused_projection_is_the_formula(model_type):
    model = adapted(model_type, init_weights=False, scaling=0.5, dropout=0.0)
    layer = next(module for module in model.modules() if isinstance(module, CeraLayer))
    x = torch.randn(2, 3, HIDDEN)
    weight, bias = layer.base_layer.weight, layer.base_layer.bias
    base = x @ (weight if isinstance(layer.base_layer, Conv1D) else weight.T)  # Conv1D's weight is (in, out)
    up, down = layer.cera_up["default"].weight, layer.cera_down["default"].weight
    expected = base + (0 if bias is None else bias) + 0.5 * torch.nn.functional.silu(x @ up.T) @ down.T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("model_type", MOE)
def test_all_linear_leaves_out_the_fused_experts(model_type):
    model = adapted(model_type, target_modules="all-linear")
    assert not any("experts" in name.split(".") for name, p in model.named_parameters() if p.requires_grad)


def test_unknown_architectures_are_told_to_name_targets():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("starcoder2", **LLAMA))
    with pytest.raises(ValueError, match="specify `target_modules`"):
        get_peft_model(model, CeraConfig(r=R))


@pytest.mark.parametrize(("model_type", "name", "kind"), [("llama", "embed_tokens", "Embedding"), ("gpt2", "wte", "E")])
def test_embeddings_are_refused_by_name_and_class(model_type, name, kind):
    with pytest.raises(ValueError, match=rf"target_modules matches '.*{name}', a {kind}.*linear layers only"):
        adapted(model_type, target_modules=[name])


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_are_refused_by_name_and_class(dimensions):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = getattr(torch.nn, f"Conv{dimensions}d")(4, 4, 3)

    with pytest.raises(ValueError, match=rf"target_modules matches 'conv', a Conv{dimensions}d\..*linear layers only"):
        get_peft_model(Net(), CeraConfig(r=R, target_modules=["conv"]))
