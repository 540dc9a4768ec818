"""Embeddings of single tokens, trained beside the branches; and arguments of LoRA that these adapters do not have."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import cera
from cera.cli.suggest import explained
from cera.training.checks import count_trained
from cera.training.loss import answer_nll, supports_chunks

TOKENS = [10, 11]
IDS = torch.tensor([[5, 10, 7, 11, 5, 8]])
CONFIGS = [cera.CeraConfig, cera.HoulsbyConfig, LoraConfig]


def base(path: str, added: int = 0) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if added:
        model.resize_token_embeddings(model.config.vocab_size + added, mean_resizing=False)
    return model


def adapted(path: str, config_class: type[PeftConfig], added: int = 0, **settings) -> PeftModel:
    """An adapter with all of its weights away from their start."""
    settings = {"trainable_token_indices": TOKENS, **settings}
    model = get_peft_model(base(path, added), config_class(r=4, task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def logits(model: torch.nn.Module, **options) -> torch.Tensor:
    return model(IDS, **options).logits


@pytest.mark.parametrize("config_class", CONFIGS)
def test_only_the_rows_of_the_tokens_are_trained_saved_and_loaded(tiny_llama, tmp_path, config_class):
    model = adapted(tiny_llama, config_class)
    model(IDS, labels=IDS).loss.backward()
    [rows] = [p for name, p in model.named_parameters() if p.requires_grad and "embed_tokens" in name]
    assert rows.shape == (2, 64)
    assert rows.grad.abs().sum(dim=1).min() > 0
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    [key] = [key for key in saved if "embed_tokens" in key]
    assert torch.equal(saved[key], rows)
    again = PeftModel.from_pretrained(base(tiny_llama), tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    fresh = get_peft_model(base(tiny_llama), config_class(r=4, task_type="CAUSAL_LM", trainable_token_indices=TOKENS))
    assert not torch.allclose(logits(fresh.eval()), logits(model), atol=0.01)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_a_vocabulary_that_was_extended_is_saved_as_well(tiny_llama, tmp_path, config_class):
    model = adapted(tiny_llama, config_class, added=2)
    model.save_pretrained(tmp_path)
    other = base(tiny_llama, added=2)  # its new rows are others: they are drawn at random
    embedding = other.get_input_embeddings().weight
    assert not torch.equal(embedding[-2:], model.get_base_model().get_input_embeddings().weight[-2:])
    assert torch.equal(logits(PeftModel.from_pretrained(other, tmp_path).eval()), logits(model))


@pytest.mark.parametrize("config_class", [cera.CeraConfig, cera.HoulsbyConfig])
def test_disabled_unloaded_and_in_a_mixed_batch_it_is_the_base(tiny_llama, config_class):
    expected = logits(base(tiny_llama))
    model = adapted(tiny_llama, config_class)
    changed = logits(model)
    assert not torch.allclose(changed, expected, atol=0.01)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    with torch.no_grad():
        mixed = model(IDS.repeat(2, 1), adapter_names=["default", "__base__"]).logits
    torch.testing.assert_close(mixed, torch.cat([changed, expected]))
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        model.merge_and_unload()
    assert torch.equal(logits(model.unload()), expected)


def test_the_loss_of_the_training_step_is_that_of_all_logits(tiny_llama):
    model = adapted(tiny_llama, cera.CeraConfig)
    head = model.get_base_model().get_output_embeddings()
    assert not supports_chunks(head)  # tied to the embedding, so rows of it are trained
    batch = {"input_ids": IDS, "labels": IDS, "position_ids": torch.arange(6)[None]}
    losses, _ = answer_nll(lambda ids, **options: model(ids, **options).logits, head, batch, chunked=False)
    torch.testing.assert_close(losses, F.cross_entropy(logits(model)[0, :-1], IDS[0, 1:], reduction="none"))


def test_size_and_vocabulary_are_checked_without_weights(tiny_llama):
    config = cera.CeraConfig(r=4, task_type="CAUSAL_LM")
    alone = count_trained(tiny_llama, copy.deepcopy(config))
    config.trainable_token_indices = TOKENS
    assert count_trained(tiny_llama, copy.deepcopy(config)) == alone + 2 * 64
    config.trainable_token_indices = {"embed_tokens": [3, 49152]}
    with pytest.raises(ValueError, match=r"has 49152 embeddings, so tokens are 0 to 49151, got 49152"):
        count_trained(tiny_llama, config)


@pytest.mark.parametrize("tokens", [[], [1, 1], [-1], [True], {}, {"embed_tokens": 3}, 5, "5", [1.0]])
def test_what_is_no_list_of_tokens_is_refused(tokens):
    with pytest.raises(ValueError, match=r"CeraConfig.trainable_token_indices must be a list of token ids"):
        cera.CeraConfig(trainable_token_indices=tokens)


@pytest.mark.parametrize(
    ("argument", "ours"),
    [
        ("lora_alpha", "Use scaling, the factor s on the update: LoRA's is lora_alpha / r"),
        ("use_rslora", "Use scaling"),
        ("lora_dropout", "Use dropout"),
        ("init_lora_weights", "Use init_weights"),
        ("rank", "Use r"),
        ("target_module", "Use target_modules"),
        ("bias", "the biases of the base stay frozen"),
        ("loftq_config", "Use one of .*scaling"),
    ],
)
@pytest.mark.parametrize("config_class", [cera.CeraConfig, cera.ParallelConfig])
def test_an_argument_of_lora_names_ours(argument, ours, config_class):
    with pytest.raises(TypeError, match=rf"{config_class.__name__} got an unexpected .*'{argument}'.*{ours}"):
        config_class(**{argument: 1})


def test_the_command_line_names_ours_too():
    message = "Problem with given class_path 'cera.CeraConfig': Option 'lora_alpha' is not accepted"
    assert "Use scaling" in explained(message, [])
    of_lora = message.replace("cera.CeraConfig", "peft.LoraConfig").replace("lora_alpha", "scaling")
    assert "lora_alpha" in explained(of_lora, [])
