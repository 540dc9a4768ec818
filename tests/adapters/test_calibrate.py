"""``init="calibrated"``: every module's pre-activations get the wanted size, measured here by a forward of its own."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

import cera
from cera import CeraConfig
from cera.adapters import BranchLayer

generator = torch.Generator().manual_seed(0)
LENGTHS = (20, 13)
IDS = torch.randint(3, 1000, (2, 20), generator=generator)
MASK = torch.arange(20) < torch.tensor(LENGTHS)[:, None]
BATCHES = [
    {"input_ids": IDS.where(MASK, 0), "attention_mask": MASK.long()},
    {"input_ids": IDS + 7, "tokens": torch.ones_like(MASK)},
]


def adapted(tiny_llama, dtype=torch.float32, **options):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=dtype)
    return get_peft_model(base, CeraConfig(**{"r": 6, "init": "calibrated", **options}), autocast_adapter_dtype=False)


def branches(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, BranchLayer)}


@torch.no_grad()
def root_mean_squares(model, batches):
    """By hand: each row alone and without padding, and the products with W_up here."""
    seen = {name: [] for name in branches(model)}
    for name, layer in branches(model).items():
        layer.cera_up["default"].register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0][0]))
    model.eval()
    for batch in batches:
        mask = batch.get("tokens", batch.get("attention_mask")).bool()
        for row, tokens in zip(batch["input_ids"], mask, strict=True):
            model(row[tokens][None])
    ups = {name: layer.cera_up["default"].weight for name, layer in branches(model).items()}
    return {name: (torch.cat(x) @ ups[name].T).double().square().mean().sqrt().item() for name, x in seen.items()}


@pytest.mark.parametrize("options", [{}, {"calibration_std": 2.5}, {"granularity": "module"}, {"use_dora": True}])
def test_pre_activations_have_the_wanted_size(tiny_llama, options):
    model = adapted(tiny_llama, **options)
    plain = adapted(tiny_llama, **options)
    ids = BATCHES[0]["input_ids"]
    expected = model.eval()(ids).logits
    before = cera.calibrate(model.train(), BATCHES)
    assert model.training
    assert torch.equal(model.eval()(ids).logits, expected)  # W_down is zero: still the base
    target = options.get("calibration_std", 1.0)
    assert root_mean_squares(model, BATCHES) == pytest.approx(dict.fromkeys(before, target), rel=1e-3)
    # negative control: without calibration they are far off, and what was reported
    measured = root_mean_squares(plain, BATCHES)
    assert measured == pytest.approx(before, rel=1e-3)
    assert all(abs(value - target) > 0.05 for value in measured.values())


def test_padding_does_not_count(tiny_llama):
    changed = [{**BATCHES[0], "input_ids": IDS.where(MASK, 999)}, BATCHES[1]]
    one, other = adapted(tiny_llama), adapted(tiny_llama)
    assert cera.calibrate(one, BATCHES) == pytest.approx(cera.calibrate(other, changed), rel=1e-5)
    without_mask = [{"input_ids": batch["input_ids"]} for batch in BATCHES]
    values = cera.calibrate(adapted(tiny_llama), without_mask)
    assert max(abs(values[name] - value) for name, value in cera.calibrate(adapted(tiny_llama), BATCHES).items()) > 1e-4


def test_the_result_is_deterministic_and_draws_nothing(tiny_llama):
    models = [adapted(tiny_llama, dropout=0.5) for _ in range(2)]
    state = torch.get_rng_state()
    for model in models:
        cera.calibrate(model, BATCHES)
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_bf16_base(tiny_llama):
    model = adapted(tiny_llama, torch.bfloat16)
    before = cera.calibrate(model, BATCHES)
    assert cera.calibrate(model, BATCHES) == pytest.approx(dict.fromkeys(before, 1.0), rel=0.02)


def test_a_saved_adapter_is_as_it_was_calibrated(tiny_llama, tmp_path):
    model = adapted(tiny_llama)
    cera.calibrate(model, BATCHES)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path)
    for name, layer in branches(loaded).items():
        assert torch.equal(layer.cera_up["default"].weight, branches(model)[name].cera_up["default"].weight)


def test_what_cannot_be_calibrated_is_refused(tiny_llama):
    with pytest.raises(ValueError, match="'default' must be a CeRA adapter with init='calibrated'"):
        cera.calibrate(adapted(tiny_llama, init="kaiming_uniform"), BATCHES)
    lora = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), LoraConfig(r=2))
    with pytest.raises(ValueError, match="must be a CeRA adapter"):
        cera.calibrate(lora, BATCHES)
    with pytest.raises(ValueError, match="must be a CeRA adapter"):
        cera.calibrate(nn.Linear(2, 2), BATCHES)
    model = adapted(tiny_llama)
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="have a root mean square of nan"):
        cera.calibrate(model, [])
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    with torch.no_grad():
        next(iter(branches(model).values())).cera_down["default"].weight.fill_(0.1)
    with pytest.raises(ValueError, match=r"q_proj is trained already"):
        cera.calibrate(model, BATCHES)
