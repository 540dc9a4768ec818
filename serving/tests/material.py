"""A tiny seeded Llama with a tokenizer, adapters made by cera and PEFT, and what transformers and PEFT answer."""

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import cera
import torch
from cera.adapters.layer import BranchLayer
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ATTENTION = ["q_proj", "v_proj"]
TOLERANCE = 1e-4
"""Largest difference of a log-probability in fp32."""
SHARP = 4.0
"""Factor on ``W_up`` after its start: pre-activations of order 1, where the activations differ from a line."""

CERA: dict[str, dict[str, Any]] = {
    "silu": {},
    "relu": {"activation": "relu"},
    "gelu": {"activation": "gelu"},
    "tanh": {"activation": "tanh"},
    "sine": {"activation": "sine"},
    "identity": {"activation": "identity"},
    "mix": {"activation": "learned_mix"},
    "scaled": {"scaling": 3.0},
    "alpha": {"alpha": 12.0},
    "ranks": {"rank_pattern": {"q_proj": 3, "layers.1.self_attn.v_proj": 16}, "scaling": 0.5},
    "ranks-alpha": {"rank_pattern": {"v_proj": 16}, "alpha": 16.0},
    "all-linear": {"target_modules": "all-linear"},
    "all-linear-mix": {"target_modules": "all-linear", "activation": "learned_mix", "alpha": 4.0},
    "row": {"target_modules": ["o_proj", "down_proj"]},
}
"""Name -> what differs from CeRA with r=8 and s=1 on queries and values."""
LORA: dict[str, dict[str, Any]] = {
    "lora": {"lora_alpha": 16},
    "lora-all-linear": {"lora_alpha": 8, "target_modules": "all-linear"},
}
NAMES = [*CERA, *LORA]
NEARLY_LINEAR = {"identity", *LORA}
"""Adapters that the negative controls with a line cannot tell from themselves."""


class Half(nn.Module):
    """``z / 2``: what SiLU is near 0."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return half of ``z``."""
        return z / 2


CONTROLS = {"identity": nn.Identity, "half": Half}
"""In place of an adapter's own activation: a server that had one of these must fail the test of equality."""


class Answer(NamedTuple):
    """Greedy tokens, and for each the log-probabilities of some tokens: token -> log-probability."""

    tokens: list[int]
    logprobs: list[dict[int, float]]


def make_base(folder: Path) -> None:
    """Save a random Llama (hidden 128, 2 layers, grouped queries) with a tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(vocabulary),
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_adapter(base: Path, folder: Path, name: str, seed: int = 0) -> Path:
    """Save the adapter ``name`` of ``CERA`` or ``LORA``, drawn at random, to ``folder``, and return it."""
    torch.manual_seed(1000 * seed + NAMES.index(name))
    model = AutoModelForCausalLM.from_pretrained(base)
    if name in LORA:
        settings = {"r": 8, "target_modules": ATTENTION, "init_lora_weights": False, **LORA[name]}
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    else:
        settings = {"r": 8, "scaling": 1.0, "target_modules": ATTENTION, "init_weights": False, **CERA[name]}
        model = get_peft_model(model, cera.CeraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "cera_up" in parameter_name:
                parameter *= SHARP
            if "gamma" in parameter_name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return folder


def reference(base: Path, adapter: Path | None, control: type[nn.Module] | None = None) -> nn.Module:
    """Return transformers' model with PEFT's adapter, in fp32; ``control`` takes the place of each activation."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    for layer in model.modules():
        if control is not None and isinstance(layer, BranchLayer):
            for name in layer.branch_activation:
                layer.branch_activation[name] = control()
    return model.eval()


@torch.no_grad()
def differs(answer: Answer, prompt: list[int], model: nn.Module, logprobs: bool = True) -> str | None:
    """Say in what an answer differs from the greedy one of ``model``; ``None`` if in nothing."""
    tokens = torch.tensor([prompt + answer.tokens])
    expected = model(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    greedy = expected.argmax(-1).tolist()
    if greedy != answer.tokens:
        return f"tokens {answer.tokens}, expected {greedy}"
    if not logprobs:
        return None
    worst = max(
        abs(value - float(row[token])) for row, found in zip(expected, answer.logprobs, strict=True)
        for token, value in found.items()
    )  # fmt: skip
    return f"log-probabilities differ by {worst:.1e}" if worst > TOLERANCE else None


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Return random prompts of 3 to 60 tokens; the longer ones fill whole blocks of the cache."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 61, (count,), generator=generator).tolist()
    return [torch.randint(2, 258, (length,), generator=generator).tolist() for length in lengths]


def changed(source: Path, folder: Path, tensors: Any = None, **settings: Any) -> Path:
    """Copy an adapter with other settings, and with its tensors as the function ``tensors`` changes them in place."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    config = json.loads((source / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    state = copy.deepcopy(load_file(source / "adapter_model.safetensors"))
    if tensors is not None:
        tensors(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "adapter_model.safetensors")
    return folder
