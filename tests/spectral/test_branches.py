"""Whatever the adapter: the measured spectra are those of its output minus the base's, layer by layer."""

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, LoHaConfig, LoraConfig, get_peft_model
from token_batches import token_batches
from transformers import AutoModelForCausalLM

import cera
from cera.spectral import effective_rank
from cera.spectral.hooks import find_branches
from cera.spectral.layer_names import layer_labels
from cera.spectral.recorder import measure

TARGETS = ["q_proj", "v_proj"]
ADAPTERS = {
    "cera": cera.CeraConfig(r=8, dropout=0.1, scaling=0.5),
    "cera dora": cera.CeraConfig(r=8, use_dora=True),
    "cera identity": cera.CeraConfig(r=8, activation="identity"),
    "lora": LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=TARGETS),
    "rslora": LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules=TARGETS),
    "adalora": AdaLoraConfig(init_r=8, target_r=4, total_step=10, target_modules=TARGETS),
    "dora": LoraConfig(r=8, use_dora=True, target_modules=TARGETS),
    "loha": LoHaConfig(r=4, target_modules=TARGETS),
}
LINEAR = {"cera identity", "lora", "rslora", "adalora"}
WITH_LATENT = LINEAR | {"cera"}


@pytest.fixture
def batches():
    return token_batches(2, vocabulary=1000, length=40, padded_from=25)


def trained(base: str, adapter) -> torch.nn.Module:
    """As after training: no weight is what it was initialized to."""
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.1
    return model.eval()


@pytest.mark.parametrize("name", ADAPTERS)
def test_spectra_of_a_layer(tiny_llama, batches, name):
    model = trained(tiny_llama, ADAPTERS[name])
    values_by_quantity = measure(model, batches, ["update", "latent", "weight"])
    assert len(values_by_quantity.values["update"]) == 8
    assert bool(values_by_quantity.values["latent"]) == (name in WITH_LATENT)
    assert bool(values_by_quantity.values["weight"]) == (name in LINEAR)
    assert set(values_by_quantity.ranks.values()) == ({4} if name == "loha" else {8})

    target = "model.layers.1.self_attn.v_proj"
    layer = model.get_submodule(f"base_model.model.{target}")
    seen = {}
    layer.base_layer.register_forward_hook(lambda _, args, output: seen.update(x=args[0], base=output.clone()))
    layer.register_forward_hook(lambda _, args, output: seen.update(all=output))
    rows, inputs = [], []
    for batch in batches:
        with torch.no_grad():
            model(batch["input_ids"], position_ids=batch["position_ids"])
        rows.append((seen["all"] - seen["base"])[batch["tokens"]].double())
        inputs.append(seen["x"][batch["tokens"]].double())
    update, x = torch.cat(rows).numpy(), torch.cat(inputs).numpy()
    expected = np.linalg.svd(update, compute_uv=False)
    measured = values_by_quantity.values["update"][target].numpy()
    np.testing.assert_allclose(measured, expected[: len(measured)], rtol=1e-3, atol=1e-5 * expected[0])
    if name in LINEAR:
        weight = np.linalg.lstsq(x, update, rcond=None)[0]
        expected = np.linalg.svd(weight, compute_uv=False)[:8]
        np.testing.assert_allclose(values_by_quantity.values["weight"][target].numpy()[:8], expected, rtol=1e-2)


def test_no_hook_is_left_behind(tiny_llama, batches):
    model = trained(tiny_llama, ADAPTERS["adalora"])
    measure(model, batches, ["update"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nan_names_the_layer(tiny_llama, batches):
    model = trained(tiny_llama, ADAPTERS["cera"])
    layer = model.get_submodule("base_model.model.model.layers.2.self_attn.q_proj")
    layer.cera_up["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"model\.layers\.2\.self_attn\.q_proj: the activations hold NaN"):
        measure(model, batches, ["update"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_latent_in_training_mode_is_taken_before_dropout(tiny_llama, batches):
    model = trained(tiny_llama, cera.CeraConfig(r=8, dropout=0.5))
    branch = find_branches(model)[0]
    seen = []
    handles = branch.attach(seen.append)
    ids = batches[0]["input_ids"]
    model(ids)
    model.train()
    model(ids)
    for handle in handles:
        handle.remove()
    assert torch.equal(seen[0], seen[1])


def test_an_untrained_adapter_has_no_direction(tiny_llama, batches):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), ADAPTERS["cera"])
    values_by_quantity = measure(model, batches, ["update"]).values["update"]
    assert {effective_rank(sigma) for sigma in values_by_quantity.values()} == {0.0}


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["model.layers.7.self_attn.q_proj", "model.layers.0.self_attn.v_proj"], [(7, "q_proj"), (0, "v_proj")]),
        (["h.1.attn.c_attn", "h.1.mlp.c_proj"], [(1, "c_attn"), (1, "c_proj")]),
        (["d.1.self.q", "d.1.cross.q"], [(1, "self.q"), (1, "cross.q")]),
        (["l.3.experts.0.w1", "l.3.experts.1.w1"], [(3, "experts.0.w1"), (3, "experts.1.w1")]),
        (["lm_head"], [(0, "lm_head")]),
    ],
)
def test_layer_labels(names, labels):
    assert list(layer_labels(names).values()) == labels
