"""Adapter directories that are broken at random: each is loaded, or refused in one line."""

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, VeraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import cera
from cera.foreign_files import FileError
from cera.runs.saved_adapter import SavedAdapter
from fuzzing.texts import VALUES

Mutation = Callable[[random.Random, Path], None]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CONFIGS: dict[str, PeftConfig] = {
    "cera": cera.CeraConfig(r=4),
    "hybrid": cera.CeraConfig(r=4, use_dora=True, trainable_token_indices=[3, 4]),
    "variant": cera.CeraConfig(r=4, activation="learned_mix", recurrent_steps=2, alpha=8.0, dropout_on="input"),
    "houlsby": cera.HoulsbyConfig(r=4),
    "lora": LoraConfig(r=4, modules_to_save=["lm_head"]),
    "adalora": AdaLoraConfig(init_r=4, total_step=10),
    "vera": VeraConfig(r=4),
}


class Adapters:
    """Breaks an adapter of one of several methods, and loads it.

    Args:
        base: The base model of the adapters.
        folder: Where they are written.
    """

    longest_seconds = 10.0

    def __init__(self, base: str, folder: Path) -> None:
        self.folder = folder
        for name, config in CONFIGS.items():
            config.task_type = "CAUSAL_LM"
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
            model.save_pretrained(folder / name)
            SavedAdapter.find(folder / name).load(torch.float32, "cpu")

    def __call__(self, rng: random.Random) -> str:
        """Load a broken adapter; return the error that it ends in, or an empty text."""
        folder = self.folder / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder / rng.choice(sorted(CONFIGS)), folder)
        for mutate in rng.sample(MUTATIONS, rng.choice([1, 1, 1, 2])):
            if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
                with suppress(
                    ValueError, LookupError, TypeError, RecursionError, SafetensorError
                ):  # an earlier mutation left nothing to change
                    mutate(rng, folder)
        try:
            with warnings.catch_warnings(action="ignore"):
                SavedAdapter.find(folder).load(torch.float32, "cpu")
        except FileError as error:
            return str(error)
        return ""


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
