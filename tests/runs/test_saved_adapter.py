"""An adapter directory is held against its configuration and its base, and whatever is wrong is one error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from conftest import REPOSITORY
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import cera
from cera.evaluation import command as evaluation
from cera.evaluation.lm_eval import resolve_model_args
from cera.foreign_files import FileError
from cera.linearize import command as linearization
from cera.runs.adapter_settings import sort_sets
from cera.runs.saved_adapter import SavedAdapter
from cera.spectral import command as spectra

UP, DOWN = (f"base_model.model.model.layers.0.self_attn.q_proj.cera_{part}.weight" for part in ("up", "down"))
EMBEDDING = "base_model.model.model.embed_tokens.weight"
SETTINGS = {
    "HOULSBY": {},
    "PARALLEL": {},
    "C3A": {"block_size": 32},
    "IA3": {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "VBLORA": {"num_vectors": 8, "vector_length": 4, "save_only_topk_weights": True},
    "ADALORA": {"total_step": 10},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "TRAINABLE_TOKENS": {"token_indices": [1, 5], "target_modules": ["embed_tokens"]},
}
"""Settings of methods that have others than ``target_modules``."""


def write(folder: Path, base: str, config: peft.PeftConfig) -> Path:
    """Save an adapter of ``base`` as plain PEFT does, each of its weights at random."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tiny_llama, tmp_path_factory) -> Path:
    """The directory of a whole CeRA adapter of the tiny Llama."""
    return write(tmp_path_factory.mktemp("adapter") / "whole", tiny_llama, cera.CeraConfig(r=4, task_type="CAUSAL_LM"))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Return a function that changes the weights in a directory."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return apply


def settings(**changed: object) -> Callable[[Path], None]:
    """Return a function that changes fields of a directory's configuration; ``...`` removes one."""

    def apply(folder: Path) -> None:
        file = folder / "adapter_config.json"
        values = {**json.loads(file.read_text()), **changed}
        file.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))

    return apply


def content(name: str, data: bytes | None) -> Callable[[Path], None]:
    """Return a function that replaces a file of a directory by other content, or by a directory."""

    def apply(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir() if data is None else (folder / name).write_bytes(data)

    return apply


def first_bytes(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def fill(value: float) -> Callable[[Path], None]:
    return weights(lambda tensors: tensors[DOWN][1].fill_(value))


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BROKEN = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), rf"{WEIGHTS} is missing"),
    "a pickle": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"),
        rf"adapter_model.bin is a pickle.*Save the adapter as {WEIGHTS}",
    ),
    "weights a directory": (content(WEIGHTS, None), rf"{WEIGHTS} must be a file, and is a directory"),
    "empty": (content(WEIGHTS, b""), rf"{WEIGHTS} is not a whole safetensors file"),
    "text": (content(WEIGHTS, b"version https://git-lfs"), rf"{WEIGHTS} is not a whole safetensors file"),
    "truncated": (first_bytes, rf"{WEIGHTS} is not a whole safetensors file"),
    "of something else": (
        weights(lambda t: (t.clear(), t.update(x=torch.zeros(1)))),
        rf"lacks 16 of the 16 weights.*{UP} and has 1 that are not of this adapter, such as x",
    ),
    "one weight missing": (weights(lambda t: t.pop(DOWN)), rf"lacks 1 of the 16 weights.*{DOWN}"),
    "one too many": (weights(lambda t: t.update({f"{UP}.x": torch.zeros(1)})), rf"has 1 that are not.*{UP}.x"),
    "another width": (weights(lambda t: t.update({UP: t[UP][:, :32].clone()})), rf"{UP} has the shape \(4, 32\).*64"),
    "another rank": (settings(r=5), r"has the shape \(.*4.*\), and must have \(.*5.*\) by"),
    "another depth": (settings(layers_to_transform=[0, 1]), r"has 8 that are not of this adapter.*layers.2"),
    "another base weight": (weights(lambda t: t.update({EMBEDDING: torch.zeros(3, 64)})), rf"{EMBEDDING} .*\(3, 64\)"),
    "NaN": (fill(float("nan")), rf"{DOWN} has values that are NaN or infinite"),
    "infinite": (fill(float("-inf")), rf"{DOWN} has values that are NaN or infinite"),
    "integers": (weights(lambda t: t.update({UP: t[UP].long()})), rf"{UP} is torch.int64, and must be float16"),
    "booleans": (weights(lambda t: t.update({UP: t[UP] > 0})), rf"{UP} is torch.bool, and must be float16"),
    "config a list": (content(CONFIG, b"[]"), rf"{CONFIG} must hold a JSON object, and holds a list"),
    "config cut": (content(CONFIG, b'{"r": 4, "peft_ty'), rf"{CONFIG} cannot be read as JSON"),
    "config in binary": (content(CONFIG, b"\xff\xfe\x00"), rf"{CONFIG} cannot be read as JSON"),
    "config deeply nested": (content(CONFIG, b"[" * 100_000), rf"{CONFIG} cannot be read as JSON"),
    "config a directory": (content(CONFIG, None), "holds neither a run nor an adapter"),
    "no base": (settings(base_model_name_or_path=...), r"no base_model_name_or_path: name the base model \(--base\)"),
    "base a number": (settings(base_model_name_or_path=5), "base_model_name_or_path must be the name.*got 5"),
    "base in a package of a package": (settings(base_model_name_or_path="package://a.b/x.gguf"), "whole package"),
    "base that is not there": (settings(base_model_name_or_path="/no/where"), "/no/where: its configuration"),
    "no method": (settings(peft_type=...), "peft_type must be the name of a method, such as 'CERA', got None"),
    "method a list": (settings(peft_type=["CERA"]), r"peft_type must be the name of a method.*got \['CERA'\]"),
    "unknown method": (settings(peft_type="CURE"), "'CURE', which is not registered"),
    "rank a string": (settings(r="4"), rf"{CONFIG}: r must be int, got '4'"),
    "rank negative": (settings(r=-4), rf"{CONFIG}.*CeraConfig.r must be a positive integer, got -4"),
    "rank NaN": (settings(r=float("nan")), rf"{CONFIG} cannot be read as JSON: NaN is not a number"),
    "targets a number": (settings(target_modules=7), rf"{CONFIG}: target_modules must be list\[str\] \| str"),
    "targets of numbers": (settings(target_modules=[1, 2]), r"target_modules must be.*got \[1, 2\]"),
    "targets that are not there": (settings(target_modules=["query"]), "CeraConfig cannot be applied.*query"),
    "targets no regex": (settings(target_modules="(q_proj"), "CeraConfig cannot be applied"),
    "scaling a list": (settings(scaling=[]), r"scaling must be float, got \[\]"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter_is_one_line_that_names_file_and_field(whole, tmp_path, name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = shutil.copytree(whole, tmp_path / "adapter")
    breaks, message = BROKEN[name]
    breaks(folder)
    with pytest.raises(FileError, match=message) as caught:
        SavedAdapter.find(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_whole_adapter_is_loaded_as_it_is(whole, tiny_llama):
    loaded = SavedAdapter.find(whole).load(torch.float32, "cpu")
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), whole).eval()
    ids = torch.arange(5, 25)[None]
    assert torch.equal(loaded(ids).logits, expected(ids).logits)
    with expected.disable_adapter():
        assert not torch.allclose(loaded(ids).logits, expected(ids).logits, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_may_be_in_any_floating_point_type(whole, tmp_path, dtype):
    folder = shutil.copytree(whole, tmp_path / "adapter")
    weights(lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))(folder)
    model = SavedAdapter.find(folder).load(torch.float32, "cpu")
    assert {p.dtype for name, p in model.named_parameters() if "cera_" in name} == {torch.float32}


@pytest.mark.parametrize("method", sorted(map(str.upper, map(str, (t.value for t in PEFT_TYPE_TO_CONFIG_MAPPING)))))
def test_adapters_of_every_method_are_taken(tiny_llama, tmp_path, method):
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[method]
    known = config_class.__dataclass_fields__
    options = {"task_type": "CAUSAL_LM", **SETTINGS.get(method, {"target_modules": ["q_proj", "o_proj"]})}
    if "num_virtual_tokens" in known:
        options["num_virtual_tokens"] = 4
    try:
        write(tmp_path, tiny_llama, config_class(**{name: value for name, value in options.items() if name in known}))
    except Exception as error:
        pytest.skip(f"PEFT cannot put it on a small Llama: {error!r}")
    SavedAdapter.find(tmp_path).load(torch.float32, "cpu")
    weights(lambda tensors: tensors.pop(sorted(tensors)[-1]))(tmp_path)
    with pytest.raises(FileError):
        SavedAdapter.find(tmp_path).load(torch.float32, "cpu")


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(use_dora=True, bias="all", modules_to_save=["lm_head"]),
        LoraConfig(init_lora_weights="pissa", r=4),
        LoraConfig(target_modules=["embed_tokens", "q_proj"]),
        LoraConfig(trainable_token_indices=[3, 4], lora_alpha=16.5),
        LoraConfig(target_parameters=["q_proj.weight"], target_modules=["v_proj"]),
        cera.CeraConfig(use_dora=True, modules_to_save=["embed_tokens"]),
        cera.CeraConfig(granularity="module"),
    ],
    ids=lambda config: str(type(config).__name__),
)
def test_settings_that_save_more_than_the_adapter_are_taken(tiny_llama, tmp_path, config):
    config.task_type = "CAUSAL_LM"
    SavedAdapter.find(write(tmp_path, tiny_llama, config)).load(torch.float32, "cpu")


def test_an_adalora_whose_ranks_were_reduced_is_taken(tiny_llama, tmp_path):
    schedule = {"init_r": 6, "target_r": 2, "tinit": 1, "tfinal": 1, "deltaT": 1, "total_step": 4}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), AdaLoraConfig(**schedule, r=4))
    ids = torch.arange(5, 25)[None]
    for step in range(1, 5):
        model(input_ids=ids, labels=ids).loss.backward()
        model.base_model.update_and_allocate(step)
    model.save_pretrained(tmp_path)
    assert any(len(tensor) < 6 for name, tensor in load_file(tmp_path / WEIGHTS).items() if "lora_A" in name)
    SavedAdapter.find(tmp_path, tiny_llama).load(torch.float32, "cpu")


def test_every_command_refuses_before_a_model_is_loaded(whole, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(whole, tmp_path / "adapter")
    weights(lambda tensors: tensors.pop(DOWN))(folder)
    monkeypatch.setattr("cera.runs.saved_adapter.load_model", None)
    out = f"--out={tmp_path / 'out'}"
    commands = {
        evaluation.main: [f"--config={REPOSITORY / 'configs' / 'eval_smol.yaml'}", f"--adapter={folder}", out],
        spectra.main: [str(folder), out],
        linearization.main: [str(folder), out],
    }
    for main, arguments in commands.items():
        assert main(arguments) == 2
        printed = capsys.readouterr().err.splitlines()
        assert printed[-1].startswith(f"error: {folder / WEIGHTS} lacks 1 of the 16 weights"), main.__module__
    with pytest.raises(FileError, match="lacks 1 of the 16"):
        resolve_model_args({"peft": str(folder)})
    assert not (tmp_path / "out").exists()


def test_sets_of_a_saved_configuration_are_sorted_and_lists_are_left(tmp_path) -> None:
    config = cera.CeraConfig(target_modules=["v_proj", "q_proj", "o_proj"], modules_to_save=["lm_head", "embed_tokens"])
    config.save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    unsorted = json.loads(file.read_text()) | {"target_modules": ["v_proj", "o_proj", "q_proj"]}
    file.write_text(json.dumps(unsorted))
    sort_sets(tmp_path, config)
    assert json.loads(file.read_text()) == unsorted | {"target_modules": ["o_proj", "q_proj", "v_proj"]}
    assert peft.PeftConfig.from_pretrained(str(tmp_path)).target_modules == config.target_modules
