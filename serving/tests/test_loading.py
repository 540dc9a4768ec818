"""What the engine refuses, without ending: adapters that are whole but do not fit the model."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import Engine
from material import changed, differs, make_adapter, prompts, reference

from cera_vllm.loading import CHECK_LORA

Q = "base_model.model.model.layers.0.self_attn.q_proj"
LAYER = "base_model.model.model.layers.1."


def moved(to: str) -> Callable[[dict], None]:
    """Move the tensors of ``q_proj`` of the first layer to another module."""

    def move(state: dict) -> None:
        for name in [name for name in state if name.startswith(Q)]:
            state[name.replace(Q, to)] = state.pop(name)

    return move


def narrowed(state: dict) -> None:
    """Take the first half of what each branch reads."""
    for name in state:
        if "cera_up" in name or "lora_A" in name:
            state[name] = state[name][:, :64]


def shortened(state: dict) -> None:
    """Take the first half of what each branch adds to."""
    for name in state:
        if "cera_down" in name or "lora_B" in name:
            state[name] = state[name][:16]


def halved(state: dict) -> None:
    """Leave out the second layer."""
    for name in [name for name in state if name.startswith(LAYER)]:
        del state[name]


UNFIT: dict[str, tuple[Any, dict[str, Any], str]] = {
    "narrow": (narrowed, {}, r"q_proj maps 128 to 128, the adapter 64 to 128"),
    "short": (shortened, {}, r"q_proj maps 128 to 128, the adapter 128 to 16"),
    "deep": (moved(Q.replace(".0.", ".99.")), {}, r"layers.99.self_attn.q_proj is no linear layer"),
    "half": (halved, {}, r"layers.1.self_attn.q_proj has no tensors, though target_modules names it"),
}
"""Name -> its tensors, its settings, and what is said; for CeRA and LoRA."""
UNFIT_CERA = {
    "head": (moved("base_model.model.lm_head"), {}, r"lm_head is no linear layer within the model"),
    "embeddings": (moved("base_model.model.model.embed_tokens"), {}, r"embed_tokens is no linear layer within"),
    "attention": (moved("base_model.model.model.layers.0.self_attn"), {}, r"self_attn is no linear layer of the model"),
}
CASES = [*((source, name) for source in ("silu", "lora") for name in UNFIT), *(("silu", name) for name in UNFIT_CERA)]


@pytest.fixture(autouse=True)
def as_in_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold LoRA adapters against the model, too."""
    monkeypatch.setenv(CHECK_LORA, "1")


@pytest.mark.parametrize(("source", "name"), CASES)
def test_an_adapter_that_does_not_fit_is_refused_each_time(
    engine: Engine, base: Path, adapters: dict[str, Path], tmp_path: Path, source: str, name: str
) -> None:
    """It is refused at load and in a request, and the next request is answered."""
    tensors, settings, message = {**UNFIT, **UNFIT_CERA}[name]
    folder = changed(adapters[source], tmp_path / f"{source}-{name}", tensors, **settings)
    request = engine.request(folder)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            engine.llm.llm_engine.add_lora(request)
        with pytest.raises(ValueError, match=message):
            engine.answers(prompts(1), [folder])
        assert request.lora_int_id not in engine.llm.llm_engine.list_loras()
    (prompt,) = prompts(1)
    (answer,) = engine.answers([prompt], [adapters["relu"]])
    assert differs(answer, prompt, reference(base, adapters["relu"])) is None


def test_a_rank_above_the_engines_is_refused(engine: Engine, base: Path, adapters: dict, tmp_path: Path) -> None:
    def wider(state: dict) -> None:
        for name, tensor in state.items():
            state[name] = torch.cat([tensor, tensor, tensor], dim=0 if "cera_up" in name else 1)

    folder = changed(adapters["silu"], tmp_path / "wide", wider, r=24)
    with pytest.raises(ValueError, match=r"rank 24 is greater than max_lora_rank 16"):
        engine.answers(prompts(1), [folder])


def test_a_directory_that_is_not_there(engine: Engine, base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(ValueError, match=r"adapter_config.json is missing"):
        engine.answers(prompts(1), [tmp_path / "nowhere"])
    monkeypatch.delenv(CHECK_LORA)  # a LoRA in vLLM as it is, with the plugin
    with pytest.raises(Exception, match=re.escape(str(tmp_path / "nowhere"))):
        engine.answers(prompts(1), [tmp_path / "nowhere"])
    (prompt,) = prompts(1)
    (answer,) = engine.answers([prompt], [None])
    assert differs(answer, prompt, reference(base, None)) is None


def test_answers_are_those_of_what_was_loaded(engine: Engine, base: Path, adapters: dict, tmp_path: Path) -> None:
    """A directory that is overwritten changes nothing, evicted or not, until it is loaded in place."""
    folder = tmp_path / "mine"
    shutil.copytree(adapters["silu"], folder)
    other = make_adapter(base, tmp_path / "other", "tanh", seed=1)
    before, after = reference(base, folder), reference(base, other)
    (prompt,) = [prompt for prompt in prompts(30) if len(prompt) > 40][:1]  # with whole blocks in the prefix cache
    assert differs(engine.answers([prompt], [folder])[0], prompt, before) is None
    shutil.copytree(other, folder, dirs_exist_ok=True)
    assert differs(engine.answers([prompt], [folder])[0], prompt, before) is None
    engine.llm.llm_engine.remove_lora(engine.request(folder).lora_int_id)
    assert differs(engine.answers([prompt], [folder])[0], prompt, before) is None
    engine.llm.llm_engine.add_lora(engine.request(folder, load_inplace=True))
    (answer,) = engine.answers([prompt], [folder])
    assert differs(answer, prompt, after) is None
    assert differs(answer, prompt, before) is not None
    shutil.rmtree(folder)
    engine.llm.llm_engine.remove_lora(engine.request(folder).lora_int_id)
    assert differs(engine.answers([prompt], [folder])[0], prompt, after) is None
