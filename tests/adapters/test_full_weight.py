"""Full fine-tuning as a PEFT method equals training the matrices themselves, and is saved, merged and left out."""

import copy

import pytest
import torch
from families import build
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import cera
from cera.spectral import SpectrumAccumulator
from cera.spectral.measures import effective_rank

TARGETS = ["q_proj", "v_proj"]
IDS = torch.randint(3, 60, (4, 16), generator=torch.Generator().manual_seed(0))


def adapted(model, **settings):
    return get_peft_model(copy.deepcopy(model), cera.FullWeightConfig(**{"target_modules": TARGETS, **settings}))


def train(model, parameters, steps=4):
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return build("llama").float().eval()


def targets(model):
    return [p for name, p in model.named_parameters() if any(f"{target}.weight" in name for target in TARGETS)]


def test_training_it_is_training_the_matrices(base) -> None:
    plain = copy.deepcopy(base)
    plain.requires_grad_(False)
    for weight in targets(plain):
        weight.requires_grad_(True)
    train(plain, targets(plain))
    model = adapted(base)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in targets(base))
    assert torch.equal(logits(model), logits(base))
    train(model, trained)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(targets(model.merge_and_unload()), targets(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=TARGETS))
    train(lora, [p for p in lora.parameters() if p.requires_grad])
    assert (logits(lora) - logits(plain)).abs().max() > 1e-2


def test_the_whole_model_can_be_trained(base) -> None:
    plain = copy.deepcopy(base)
    train(plain, list(plain.parameters()))
    others = ["embed_tokens", "input_layernorm", "post_attention_layernorm", "norm", "lm_head"]
    model = adapted(base, target_modules="all-linear", modules_to_save=others)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in base.parameters())
    train(model, trained)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-3, atol=1e-3)


def test_it_is_saved_without_the_base_and_loaded_again(base, tmp_path) -> None:
    model = adapted(base, init_weights=False).eval()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(w.numel() for w in weights.values()) == sum(p.numel() for p in targets(base))
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    assert torch.equal(logits(loaded), logits(model))
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), logits(base))
    assert not torch.allclose(logits(loaded), logits(base))
    assert torch.equal(logits(loaded.unload()), logits(base))


@pytest.mark.parametrize(("family", "names"), [("llama", TARGETS), ("gpt2", ["c_attn"])])
def test_merging_changes_no_output_and_unmerging_gives_the_base_back(family, names) -> None:
    torch.manual_seed(0)
    base = build(family).float().eval()
    model = adapted(base, target_modules=names, init_weights=False).eval()
    before = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(logits(model), before) or torch.allclose(logits(model), before, atol=1e-5)
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(base), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(model.merge_and_unload(safe_merge=True)), before, rtol=1e-4, atol=1e-4)


def test_a_second_adapter_is_frozen_until_it_is_active(base) -> None:
    model = adapted(base)
    model.add_adapter("other", cera.FullWeightConfig(target_modules=TARGETS, init_weights=False))
    assert {name.split(".")[-1] for name, p in model.named_parameters() if p.requires_grad} == {"default"}
    model.eval()
    assert torch.equal(logits(model), logits(base))
    model.set_adapter("other")
    assert not torch.allclose(logits(model), logits(base))


def test_weights_that_are_not_finite_are_not_merged(base) -> None:
    model = adapted(base)
    name, delta = next((name, p) for name, p in model.named_parameters() if "full_delta" in name)
    delta.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        model.merge_and_unload(safe_merge=True)
    assert all(weight.isfinite().all() for weight in targets(base)), name


def test_what_is_no_linear_layer_is_refused(base) -> None:
    with pytest.raises(ValueError, match=r"matches 'model\.layers\.0\.mlp', a .*MLP, .* modules_to_save"):
        adapted(base, target_modules=["mlp"])
    with pytest.raises(ValueError, match=r"FullWeightConfig\.init_weights must be true or false, got 'yes'"):
        cera.FullWeightConfig(init_weights="yes")
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'r'\. Use "):
        cera.FullWeightConfig(r=4)


def test_the_update_has_the_rank_of_the_matrix(base) -> None:
    """The spectrum that the package records is that of ``x Delta^T``."""
    from cera.spectral import exact

    model = adapted(base, init_weights=False).eval()
    layer = next(m for name, m in model.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    x = torch.randn(64, layer.in_features)
    with exact.isolated(x.device):
        update = exact.exact_update(layer, "default", (x,), {})
    expected = x.double() @ layer.full_delta["default"].double().T
    torch.testing.assert_close(update, expected, rtol=1e-9, atol=1e-9)
    accumulator = SpectrumAccumulator("layer")
    accumulator.update(update)
    sigma = accumulator.singular_values()
    assert 4 < effective_rank(sigma) <= min(layer.full_delta["default"].shape)
