"""Adapter directories that are broken at random: each is loaded, or refused in one line, and none takes long."""

import json
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import cera
from cera.foreign_files import FileError
from cera.runs.saved_adapter import SavedAdapter

Mutation = Callable[[random.Random, Path], None]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LONGEST_SECONDS = 10.0
CONFIGS: dict[str, PeftConfig] = {
    "cera": cera.CeraConfig(r=4),
    "hybrid": cera.CeraConfig(r=4, use_dora=True, trainable_token_indices=[3, 4]),
    "houlsby": cera.HoulsbyConfig(r=4),
    "lora": LoraConfig(r=4, modules_to_save=["lm_head"]),
    "adalora": AdaLoraConfig(init_r=4, total_step=10),
    "vera": VeraConfig(r=4),
}
VALUES = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        10**9,
        10**30,
        -(10**9),
        0.5,
        -0.5,
        1e308,
        "",
        "x",
        "q_proj",
        ".*",
        "(",
        "[",
        "\0",
    ),
    *([], [0], [1, 2], [-1], [10**9], ["q_proj"], ["q_proj", "x"], [None], [[0, 1]], [[]], ["\ud7ff" * 50]),
    *({}, {"q_proj": 2}, {"q_proj": "2"}, {"(": 2}, {"a": []}, {"q_proj": {}}, [[[[[[]]]]]], "CERA", "LORA", "VERA"),
    *(
        "CAUSAL_LM",
        "SEQ_CLS",
        "../..",
        "/dev/zero",
        "package://a/b.gguf",
        "package:///",
        "a/b/c",
        "silu",
        "tanh",
        "pissa",
    ),
]


def change_field(rng: random.Random, folder: Path) -> None:
    file = folder / CONFIG
    settings = json.loads(file.read_text())
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        name = rng.choice([*settings, *settings, "unknown", "runtime_config", "auto_mapping"])
        if rng.random() < 0.15:
            settings.pop(name, None)
        else:
            settings[name] = rng.choice(VALUES)
    file.write_text(json.dumps(settings))


def change_text(rng: random.Random, folder: Path) -> None:
    file = folder / CONFIG
    text = bytearray(file.read_bytes())
    start = rng.randrange(len(text))
    kind = rng.randrange(5)
    if kind == 0:
        del text[start:]
    elif kind == 1:
        del text[start : start + rng.randrange(1, 20)]
    elif kind == 2:
        text[start] = rng.randrange(256)
    elif kind == 3:
        text[start:start] = rng.choice([b"NaN", b"[" * 5000, b"\xff", b",", b'"', b"{}", b"1e999", b"null", b"//"])
    else:
        text[:] = rng.choice([b"", b"null", b"[]", b"0", b'""', b"\xef\xbb\xbf{}", b"{}", b"[" * 10**5])
    file.write_bytes(text)


def change_tensor(rng: random.Random, folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    name = rng.choice(sorted(weights))
    weight = weights.pop(name)
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: weights.update({name + rng.choice([".x", "x", ".default", ".weight"]): weight}),
        lambda: weights.update({name.replace("layers.0", f"layers.{rng.randrange(2, 99)}"): weight}),
        lambda: weights.update({name: weight, "x": torch.zeros(1)}),
        lambda: weights.update({name: weight, "base_model.model.lm_head.weight": torch.zeros(2, 2)}),
        lambda: weights.update({name: weight.T.contiguous()}),
        lambda: weights.update({name: weight[None]}),
        lambda: weights.update({name: weight.flatten()[:0]}),
        lambda: weights.update({name: torch.tensor(1.0)}),
        lambda: weights.update({name: torch.full_like(weight, rng.choice([float("nan"), float("inf"), 0.0, 1e30]))}),
        lambda: weights.update({name: weight.to(rng.choice([torch.int8, torch.int64, torch.bool, torch.complex64]))}),
        lambda: weights.update({name: weight.to(rng.choice([torch.float16, torch.bfloat16, torch.float64]))}),
        lambda: weights.update({name: weight.to(torch.float8_e4m3fn)}),
        weights.clear,
    ]
    rng.choice(changes)()
    save_file(weights, folder / WEIGHTS, rng.choice([None, {"format": "pt"}, {"format": "tf"}]))


def change_bytes(rng: random.Random, folder: Path) -> None:
    file = folder / WEIGHTS
    data = bytearray(file.read_bytes())
    header = int.from_bytes(data[:8], "little")
    kind = rng.randrange(5)
    if kind == 0:
        del data[rng.randrange(len(data)) :]
    elif kind == 1:
        data[:8] = rng.choice([0, 1, header - 1, header + 1, 2**62, 2**64 - 1]).to_bytes(8, "little")
    elif kind == 2:
        data[rng.randrange(8, 8 + header)] = rng.randrange(256)
    elif kind == 3:
        for _ in range(rng.randrange(1, 200)):
            data[rng.randrange(8 + header, len(data))] = rng.randrange(256)
    else:
        data += rng.randbytes(rng.randrange(1, 100))
    file.write_bytes(data)


def change_directory(rng: random.Random, folder: Path) -> None:
    file = folder / rng.choice([CONFIG, WEIGHTS])
    file.unlink()
    kind = rng.randrange(5)
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        file.symlink_to(folder / "nowhere")
    elif kind == 2:
        file.symlink_to("/dev/zero")
    elif kind == 3:
        os.mkfifo(file)


MUTATIONS: list[Mutation] = [change_field] * 4 + [change_tensor] * 3 + [change_text, change_bytes, change_directory]


@pytest.fixture(scope="module")
def adapters(tiny_llama, tmp_path_factory) -> dict[str, Path]:
    """A directory with an adapter of each method, which loads."""
    folders = {}
    for name, config in CONFIGS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        config.task_type = "CAUSAL_LM"
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config).save_pretrained(folders[name])
        SavedAdapter.find(folders[name]).load(torch.float32, "cpu")
    return folders


def outcome(folder: Path) -> str:
    """Load an adapter, and return ``loaded`` or the message of the one error; any other error is passed on."""
    try:
        with warnings.catch_warnings(action="ignore"):
            SavedAdapter.find(folder).load(torch.float32, "cpu")
    except FileError as error:
        return str(error)
    return "loaded"


@pytest.mark.parametrize(
    ("first", "last"), [(0, 60), pytest.param(60, 700, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_broken_adapters_are_loaded_or_refused_in_one_line(adapters, tmp_path, monkeypatch, first, last):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)  # names such as ../.. are paths from here
    outcomes = []
    for seed in range(first, last):
        rng = random.Random(seed)
        name = rng.choice(sorted(adapters))
        folder = shutil.copytree(adapters[name], tmp_path / str(seed))
        for mutate in rng.sample(MUTATIONS, rng.choice([1, 1, 1, 2])):
            if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
                with suppress(ValueError, LookupError):  # an earlier mutation left nothing to change
                    mutate(rng, folder)
        start = time.perf_counter()
        try:
            outcomes.append(outcome(folder))
        except Exception as error:
            raise AssertionError(f"seed {seed}, {name}: {error!r}") from error
        seconds = time.perf_counter() - start
        assert len(outcomes[-1].splitlines()) == 1, f"seed {seed}, {name}: {outcomes[-1]}"
        assert len(outcomes[-1]) < 1500, f"seed {seed}, {name}: {outcomes[-1]}"
        assert seconds < LONGEST_SECONDS, f"seed {seed}, {name}: {seconds:.1f} s"
        shutil.rmtree(folder)
    assert len(outcomes) / 20 < outcomes.count("loaded") < len(outcomes) / 2
