"""Documents that are tokenized once: the same batches, none is tokenized again, and none is taken for another."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import SMOL

from cera.data import ChatDataset, ReasoningGymWordProblems
from cera.data.chat import ChatEncoder
from cera.data.datamodule import ChatData
from cera.data.tokenized import FOLDER, documents_fingerprint
from cera.models.backbone import load_tokenizer

LENGTH = 48


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of `datasets` for each test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / FOLDER


@dataclass
class Counted(ChatDataset):
    """Writes a line to a file for each row that is parsed."""

    def parse(self, raw: dict[str, Any]) -> Any:
        with Path(self.files()[0]).with_suffix(".parsed").open("a") as file:
            file.write(".\n")
        return super().parse(raw)


def parsed(file: str) -> int:
    """How many rows were parsed so far."""
    path = Path(file).with_suffix(".parsed")
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def chats(tmp_path) -> str:
    """A file of 60 rows; one is malformed, one blank, and one has no answer within the length."""
    lines = []
    for number in range(60):
        question = "why? " * (200 if number == 7 else number % 8)
        turns = {"user": question, "assistant": f"row {number}" + " so" * (number % 5)}
        lines.append(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns.items()]}))
    lines[11], lines[23] = '{"messages": []}', ""
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def batches(file: str, epochs: int = 2, **options: Any) -> list[dict[str, Any]]:
    """All training batches, then those of the validation."""
    settings = {"validation_rows": 8, "max_length": LENGTH, "batch_size": 2, "max_malformed": 0.1, **options}
    data = ChatData(Counted(file), SMOL, **settings)
    data.setup()
    read = []
    for _ in range(epochs):
        for batch in data.train_dataloader():
            read.append(batch)
            data.train_stream.position = batch["position"].state
    return [*read, *data.val_dataloader()]


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert len(ours) == len(theirs)
    for first, second in zip(ours, theirs, strict=True):
        for key in ("input_ids", "labels", "position_ids"):
            assert torch.equal(first[key], second[key])
        positions = [batch["position"] and json.dumps(batch["position"].state) for batch in (first, second)]
        assert positions[0] == positions[1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_same_batches_and_positions_as_when_each_row_is_tokenized_as_it_is_read(chats, num_workers) -> None:
    expected = batches(chats)
    assert_same(batches(chats, tokenize_once=True, num_workers=num_workers), expected)
    other = batches(chats, tokenize_once=True, loss_on="all")
    with pytest.raises(AssertionError):  # a negative control
        assert_same(other, expected)


def test_a_second_run_tokenizes_nothing(chats, cache) -> None:
    batches(chats, tokenize_once=True)
    assert parsed(chats) == 60
    batches(chats, tokenize_once=True, seed=1, batch_size=4, packing=False)
    assert parsed(chats) == 60
    assert len(list(cache.glob("*.arrow"))) == 2  # training and validation
    batches(chats, tokenize_once=True, max_length=LENGTH - 1)
    assert parsed(chats) == 120
    batches(chats, epochs=1)  # a negative control: without it each run tokenizes what it reads
    assert parsed(chats) > 160


def test_questions_are_those_of_the_raw_rows(chats) -> None:
    questions = []
    for once in (False, True):
        data = ChatData(ChatDataset(chats), SMOL, validation_rows=8, max_length=LENGTH, tokenize_once=once)
        data.setup()
        questions.append(list(data.questions()))
    assert len(questions[0]) > 4
    assert questions[0] == questions[1]


FINGERPRINT = """
import sys
from cera.data import ChatDataset, ReasoningGymWordProblems
from cera.data.chat import ChatEncoder
from cera.data.tokenized import documents_fingerprint
from cera.models.backbone import load_tokenizer
encoder = ChatEncoder(load_tokenizer(sys.argv[2]), 48)
for dataset in (ChatDataset(sys.argv[1]), ReasoningGymWordProblems(size=20)):
    print(documents_fingerprint(dataset.load(), dataset, encoder))
"""


def test_another_process_gives_the_same_documents_the_same_name(chats, monkeypatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(datasets.config.HF_DATASETS_CACHE))
    command = [sys.executable, "-c", FINGERPRINT, chats, SMOL]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()
    encoder = ChatEncoder(load_tokenizer(SMOL), LENGTH)
    encoder([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])  # which has been used before
    made = [ChatDataset(chats), ReasoningGymWordProblems(size=20)]
    assert printed == [documents_fingerprint(dataset.load(), dataset, encoder) for dataset in made]


def test_all_that_documents_depend_on_is_in_their_name(chats, tmp_path) -> None:
    rows, tokenizer = ChatDataset(chats).load(), load_tokenizer(SMOL)

    def name(made: datasets.Dataset = rows, dataset: ChatDataset | None = None, **options: Any) -> str:
        encoder = ChatEncoder(options.pop("tokenizer", tokenizer), options.pop("max_length", LENGTH), **options)
        return documents_fingerprint(made, dataset or ChatDataset(chats), encoder)

    dated, added = load_tokenizer(SMOL), load_tokenizer(SMOL)
    dated.chat_template = tokenizer.chat_template.replace("assistant", "helper")
    added.add_tokens(["<new>"])
    names = [
        name(),
        name(rows.select(range(30))),
        name(dataset=ChatDataset(chats, turns="first")),
        name(dataset=Counted(chats)),
        name(max_length=47),
        name(overlong="drop"),
        name(loss_on="all"),
        name(loss_on_end=False),
        name(tokenizer=dated),
        name(tokenizer=added),
    ]
    assert len(set(names)) == len(names)
    assert name() == names[0]
    Path(chats).write_text(Path(chats).read_text().replace("row 3", "row x"))
    assert name(ChatDataset(chats).load()) not in names
