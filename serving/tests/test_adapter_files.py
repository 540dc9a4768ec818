"""Each kind of malformed adapter is refused with what is wrong about it, by the store and so by the server."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cera
import pytest
import torch
from material import changed

from cera_vllm.adapter_files import AdapterError, read_branches, read_settings
from cera_vllm.store import AdapterStore

Q = "base_model.model.model.layers.0.self_attn.q_proj"
UP, DOWN = f"{Q}.cera_up.weight", f"{Q}.cera_down.weight"
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"


def put(name: str, tensor: torch.Tensor) -> Callable[[dict], None]:
    """Put a tensor in the place of another, or beside them."""
    return lambda state: state.__setitem__(name, tensor)


def drop(name: str) -> Callable[[dict], None]:
    """Leave a tensor out."""
    return lambda state: state.__delitem__(name)


def nan(name: str) -> Callable[[dict], None]:
    """Make one number of a tensor not a number."""
    return lambda state: state[name].view(-1).__setitem__(3, float("nan"))


MALFORMED: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "cera-rank": ("silu", None, {"r": 4}, "must be (r, in) and (out, r) with r=4"),
    "cera-nan": ("silu", nan(UP), {}, f"{UP} holds values that are not finite"),
    "cera-missing": ("silu", drop(DOWN), {}, "self_attn.q_proj lacks the tensor cera_down.weight"),
    "cera-extra": ("silu", put(f"{Q}.cera_magnitude", torch.ones(8)), {}, "cera_magnitude', which is no tensor of"),
    "cera-lora-tensors": ("lora", None, {"peft_type": "CERA", "activation": "silu"}, "which is no tensor of a CERA"),
    "cera-gamma": ("silu", None, {"activation": "learned_mix"}, "lacks the tensor cera_activation.gamma"),
    "cera-mix": ("mix", None, {"activation": "silu"}, "has the tensor cera_activation.gamma"),
    "cera-integers": ("silu", put(UP, torch.ones(8, 128, dtype=torch.int32)), {}, "not finite floating-point"),
    "cera-empty": ("silu", dict.clear, {}, "holds no tensors"),
    "cera-module": ("silu", None, {"granularity": "module"}, "granularity='module': an adapter beside whole modules"),
    "cera-dora": ("silu", None, {"use_dora": True}, "the hybrid with DoRA cannot be served"),
    "cera-experts": ("silu", None, {"target_parameters": ["experts.down_proj"]}, "fused experts"),
    "cera-recurrent": ("silu", None, {"recurrent_steps": 2}, "a recurrent latent"),
    "cera-tokens": ("silu", None, {"trainable_token_indices": [3]}, "embeddings of its own"),
    "cera-whole": ("silu", None, {"modules_to_save": ["lm_head"]}, "whole modules of its own"),
    "cera-sigmoid": ("silu", None, {"activation": "sigmoid"}, "activation 'sigmoid' cannot be served: identity, silu"),
    "cera-scaling": ("silu", None, {"scaling": float("nan")}, "scaling must be a finite number, got nan"),
    "cera-slow": ("silu", None, {"rank_pattern": {"((.|.)*)*[!?]": 8}}, "takes too long to match a name"),
    "cera-regex": ("silu", None, {"target_modules": "(q_proj"}, "'(q_proj' is no regular expression"),
    "cera-r": ("silu", None, {"r": "8"}, "r must be a positive integer, got '8'"),
    "cera-pattern": ("silu", None, {"rank_pattern": {"q_proj": 0}}, "rank_pattern['q_proj'] must be a positive"),
    "houlsby": ("silu", None, {"peft_type": "HOULSBY"}, "peft_type 'HOULSBY' cannot be served"),
    "lora-rank": ("lora", None, {"r": 4}, "must be (r, in) and (out, r) with r=4"),
    "lora-nan": ("lora", nan(B), {}, "not finite"),
    "lora-missing": ("lora", drop(A), {}, "lacks the tensor lora_A.weight"),
    "lora-extra": ("lora", put(f"{Q}.lora_magnitude_vector", torch.ones(8)), {}, "which is no tensor of a LORA"),
}
"""Name -> adapter that is changed, its tensors, its settings, and what is said."""


def make(adapters: dict[str, Path], folder: Path, name: str) -> Path:
    """Make the malformed adapter ``name`` in ``folder``."""
    source, tensors, settings, _ = MALFORMED[name]
    return changed(adapters[source], folder, tensors, **settings)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_adapter_is_refused_each_time(adapters: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder, store = make(adapters, tmp_path / name, name), AdapterStore()
    for _ in range(2):
        with pytest.raises(AdapterError) as refused:
            store.take(folder)
        assert MALFORMED[name][3] in str(refused.value)
    assert list(store.root.iterdir()) == []


def test_broken_files(adapters: dict[str, Path], tmp_path: Path) -> None:
    store = AdapterStore()
    deep = "[" * 100_000
    for name, text in (("{", "cannot be read"), ("[]", "must hold an object, got list"), (deep, "cannot be read")):
        folder = changed(adapters["silu"], tmp_path / f"config-{len(name)}")
        (folder / "adapter_config.json").write_text(name)
        with pytest.raises(AdapterError, match=text):
            store.take(folder)
    for source in ("silu", "lora"):
        folder = changed(adapters[source], tmp_path / f"truncated-{source}")
        whole = (folder / "adapter_model.safetensors").read_bytes()
        for size in (0, 5, len(whole) // 2, len(whole) - 1):
            (folder / "adapter_model.safetensors").write_bytes(whole[:size])
            with pytest.raises(AdapterError, match="truncated or no safetensors file"):
                store.take(folder)
        (folder / "adapter_model.safetensors").unlink()
        with pytest.raises(AdapterError, match=r"adapter_model.safetensors is missing"):
            store.take(folder)
        torch.save({}, folder / "adapter_model.bin")
        with pytest.raises(AdapterError, match=r"adapter_model.bin is pickled, and is not read"):
            store.take(folder)
    with pytest.raises(AdapterError, match=r"adapter_config.json is missing"):
        store.take(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "adapter_config.json")
    with pytest.raises(AdapterError, match="is no file"):
        store.take(tmp_path)


NUMBERS = [None, True, -1, 0, 1.5, float("inf"), 10**400]
NASTY = [*NUMBERS, "", "x", "(", [], [[]], [1], {}, {"x": []}, {"(": 1}, {"x": True}]


@pytest.mark.parametrize("source", ["silu", "mix", "lora"])
def test_any_value_of_any_setting_is_taken_or_refused(adapters: dict[str, Path], tmp_path: Path, source: str) -> None:
    """And no other exception comes."""
    config = json.loads((adapters[source] / "adapter_config.json").read_text())
    shutil.copy(adapters[source] / "adapter_model.safetensors", tmp_path)
    taken = refused = 0
    for name in config:
        for value in NASTY:
            (tmp_path / "adapter_config.json").write_text(json.dumps({**config, name: value}))
            try:
                settings = read_settings(tmp_path)
                for module in read_branches(tmp_path, settings):
                    settings.targets_module(module)
                taken += 1
            except AdapterError:
                refused += 1
    assert taken > 50
    assert refused > 20


def test_settings_are_those_of_peft(adapters: dict[str, Path]) -> None:
    """Rank patterns and alpha, against the tensors that PEFT saved and the factor of the formula."""
    settings = read_settings(adapters["ranks-alpha"])
    branches = read_branches(adapters["ranks-alpha"], settings)
    ranks = {name: branch.up.shape[0] for name, branch in branches.items()}
    assert {name: settings.rank(name) for name in branches} == ranks
    assert set(ranks.values()) == {8, 16}
    assert {settings.scale(name) for name in branches} == {2.0, 1.0}


def test_a_setting_that_is_left_out_is_cera_s_default(adapters: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(adapters["silu"], tmp_path / "short")
    settings = json.loads((folder / "adapter_config.json").read_text())
    del settings["scaling"], settings["activation"]
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    short, default = read_settings(folder), cera.CeraConfig()
    assert (short.scale("q_proj"), short.activation) == (default.scaling, default.activation)


def test_targets(adapters: dict[str, Path], tmp_path: Path) -> None:
    settings = read_settings(adapters["silu"])
    assert settings.targets_module("model.layers.1.self_attn.q_proj")
    assert not settings.targets_module("model.layers.1.self_attn.k_proj")
    assert not settings.targets_module("model.layers.1.self_attn.another_q_proj")
    regex = read_settings(changed(adapters["silu"], tmp_path / "regex", target_modules=r".*layers\.1\..*q_proj"))
    assert regex.targets_module("model.layers.1.self_attn.q_proj")
    assert not regex.targets_module("model.layers.0.self_attn.q_proj")
    some = read_settings(changed(adapters["silu"], tmp_path / "some", layers_to_transform=[0]))
    assert not some.targets_module("model.layers.1.self_attn.q_proj")


def test_json_of_another_kind_is_no_cera(tmp_path: Path) -> None:
    from cera_vllm.adapter_files import method_of

    assert method_of(tmp_path) is None
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "CERA"}))
    assert method_of(tmp_path) == "CERA"
