"""Loss on general text and KL to the base, against an independent computation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

import cera
from cera.data import PythonDocumentation
from cera.data.chat import IGNORE
from cera.data.texts import text_batches
from cera.training.forgetting import CHUNK, check_base_is_kept, divergence, measure


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(2, 7), st.integers(0, 2**31 - 1))
def test_divergence_is_that_of_its_definition(tokens, vocabulary, seed) -> None:
    generator = np.random.default_rng(seed)
    adapted, base = generator.normal(size=(2, tokens, vocabulary), scale=3)
    targets = generator.integers(vocabulary, size=tokens)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (adapted, base))
    expected = [
        -np.log(p[range(tokens), targets]).sum(),
        -np.log(q[range(tokens), targets]).sum(),
        (q * np.log(q / p)).sum(),
    ]
    result = divergence(*(torch.tensor(x) for x in (adapted, base)), torch.tensor(targets))
    assert result.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.fixture(scope="module")
def batches(tokenizer):
    return text_batches(PythonDocumentation(), tokenizer, 2, 2, CHUNK + 40, packing=True)


ADAPTERS = [cera.CeraConfig(r=4, init_weights=False), LoraConfig(r=4, init_lora_weights=False)]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_measured_on_a_model_as_row_by_row(tiny_llama, batches, adapter) -> None:
    torch.manual_seed(0)
    adapter.target_modules = {"q_proj", "v_proj"}
    base = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    with torch.no_grad():
        before = [base(batch["input_ids"], position_ids=batch["position_ids"]).logits for batch in batches]
    model = get_peft_model(base, adapter).train()
    measured = measure(model, batches)
    assert model.training
    assert all(not layer.disable_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer))
    sums, tokens = np.zeros(3), 0
    model.eval()
    for batch, q_logits in zip(batches, before, strict=True):
        with torch.no_grad():
            p_logits = model(batch["input_ids"], position_ids=batch["position_ids"]).logits
        keep = batch["labels"][:, 1:] != IGNORE
        log_p, log_q = (x[:, :-1][keep].double().log_softmax(-1).numpy() for x in (p_logits, q_logits))
        targets = batch["labels"][:, 1:][keep].numpy()
        at = range(len(targets))
        sums += [-log_p[at, targets].sum(), -log_q[at, targets].sum(), (np.exp(log_q) * (log_q - log_p)).sum()]
        tokens += len(targets)
    assert list(measured) == pytest.approx(sums / tokens, rel=1e-4)
    assert measured.kl > 0.01  # a control: the adapter does something


def test_an_adapter_that_does_nothing_forgets_nothing(tiny_llama, batches) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    measured = measure(get_peft_model(base, cera.CeraConfig(r=4)), batches)
    assert measured.kl == 0
    assert measured.loss == measured.base_loss


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"])
def test_starts_that_change_the_base_are_refused(start) -> None:
    config = LoraConfig()
    config.init_lora_weights = start
    with pytest.raises(ValueError, match=r"init_lora_weights=.* changes the base's weights"):
        check_base_is_kept(config)
    with pytest.raises(ValueError, match="trains the base's biases"):
        check_base_is_kept(LoraConfig(bias="all"))


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "mica"])
def test_the_base_is_kept_by_starts_that_are_not_refused(tiny_llama, start) -> None:
    check_base_is_kept(LoraConfig(init_lora_weights=start))
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        expected = base(ids).logits
        model = get_peft_model(base, LoraConfig(r=4, init_lora_weights=start, target_modules=["q_proj"])).eval()
        with model.disable_adapter():
            assert torch.equal(model(ids).logits, expected)
