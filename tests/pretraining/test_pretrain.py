"""A small base model is pre-trained once, goes on after a stop as if there had been none, and loads like any base."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file

from cera.data import ChainedArithmetic, ReasoningGym
from cera.data.chat import ChatEncoder
from cera.foreign_files import FileError
from cera.models.backbone import BackboneError, load_model, load_tokenizer
from cera.pretraining.corpus import Steps, blocks, conversations, train_tokenizer
from cera.pretraining.pretrain import pretrain
from cera.pretraining.settings import Pretraining, Shape

CORPUS = [ChainedArithmetic(size=400, steps=2), ReasoningGym(size=200, family="gcd")]
SHAPE = Shape(hidden_size=32, intermediate_size=64, layers=2, heads=2)


def tiny(**options) -> Pretraining:
    values = {"name": "tiny", "corpus": CORPUS, "steps": 12, "shape": SHAPE, "block": 32, "batch_size": 4}
    return Pretraining(**{**values, "checkpoint_every": 4, "precision": "32-true", **options})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CERA_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_the_model_has_learned_and_loads_by_its_name(cache: Path) -> None:
    folder = pretrain(tiny(steps=60, checkpoint_every=20))
    record = json.loads((folder / "pretraining.json").read_text())
    losses = list(record["held_out_loss"].values())
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 0.3
    model, tokenizer = load_model("pretrained://tiny", torch.float32), load_tokenizer("pretrained://tiny")
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    rows = blocks(conversations(CORPUS, 0), tokenizer, 32)[:8].long()
    with torch.no_grad():
        assert model(input_ids=rows, labels=rows).loss.item() == pytest.approx(losses[-1], abs=0.3)
    # whoever loads it has the whole model: nothing of the training is left beside it
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == []


def test_it_is_made_once_and_other_settings_are_refused(cache: Path) -> None:
    folder = pretrain(tiny())
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert pretrain(tiny()) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(FileError, match=r"was made with pretraining.steps=12, and the configuration has 13"):
        pretrain(tiny(steps=13))


def test_the_training_goes_on_after_a_stop_as_if_there_had_been_none(cache: Path, tmp_path: Path) -> None:
    whole = load_file(pretrain(tiny(name="whole")) / "model.safetensors")
    code = (
        "import os, signal; from lightning.pytorch.callbacks import Callback\n"
        "from test_pretrain import tiny; from cera.pretraining.pretrain import pretrain\n"
        "class Kill(Callback):\n"
        "    def on_train_batch_end(self, trainer, *rest):\n"
        "        if trainer.global_step == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "pretrain(tiny(name='killed'), [Kill()])"
    )
    path = f"{REPOSITORY}:{REPOSITORY / 'tests'}:{Path(__file__).parent}"
    environment = {"PYTHONPATH": path, "CERA_CACHE_DIR": str(cache), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(BackboneError, match="has no such model"):  # a half-trained one is none
        load_model("pretrained://killed", torch.float32)
    folder = pretrain(tiny(name="killed"))
    record = json.loads((folder / "pretraining.json").read_text())
    assert list(record["held_out_loss"]) == ["8", "12"]  # it began at the checkpoint of step 4, before its validation
    resumed = load_file(folder / "model.safetensors")
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
    other = load_file(pretrain(tiny(name="other", seed=1)) / "model.safetensors")
    assert not all(torch.equal(other[name], weight) for name, weight in whole.items())


def test_the_chat_template_renders_what_was_trained_on() -> None:
    texts = conversations(CORPUS, 0)
    tokenizer = train_tokenizer(texts, 300, 64)
    messages = CORPUS[0].parse(CORPUS[0].load()[0])
    assert messages is not None
    assert tokenizer.apply_chat_template(messages, tokenize=False) in texts
    document = ChatEncoder(tokenizer, 256)(messages)
    assert document is not None
    assert tokenizer.decode([label for label in document.labels if label >= 0]) == f"{messages[1]['content']}<|end|>"


def test_every_digit_is_a_token() -> None:
    tokenizer = train_tokenizer(conversations(CORPUS, 0), 400, 64)
    assert [token for token in tokenizer.tokenize("1234 + 56") if token.isdigit()] == list("123456")


def test_steps_cover_each_epoch_once_and_begin_anywhere() -> None:
    rows = torch.arange(10).view(10, 1)
    batches = [batch["tokens"] for batch, _ in zip(Steps(rows, 3, 0, 0), range(9), strict=False)]
    first, second = torch.cat(batches[:3]).flatten().tolist(), torch.cat(batches[3:6]).flatten().tolist()
    assert len(set(first)) == len(set(second)) == 9
    assert first != second
    later = next(iter(Steps(rows, 3, 0, 5)))["tokens"]
    assert torch.equal(later, batches[5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a/b"}, "pretraining.name"),
        ({"steps": 0}, "pretraining.steps must be at least 1, got 0."),
        ({"corpus": []}, "pretraining.corpus must have at least one data set"),
        ({"held_out": 0.0}, "pretraining.held_out must be in"),
        ({"block": 2048}, "pretraining.block must be at most pretraining.shape.positions=1024, got 2048."),
        ({"shape": Shape(hidden_size=30, heads=4)}, "pretraining.shape.hidden_size must be a multiple of"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


@pytest.mark.parametrize("base", ["pretrained://", "pretrained://a/b", "pretrained://.."])
def test_a_name_is_no_path(base: str, cache: Path) -> None:
    with pytest.raises(BackboneError, match="must be pretrained://NAME"):
        load_tokenizer(base)


def test_a_model_that_is_not_there_says_how_to_make_it(cache: Path) -> None:
    with pytest.raises(BackboneError, match=r"cera pretrain --config FILE.*cera://pretraining/tunnel"):
        load_tokenizer("pretrained://tunnel")
