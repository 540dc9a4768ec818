"""What of the data is trained on: tokens with loss, rows of a part, first turns, rows drawn with replacement."""

import copy
import json
from collections import Counter
from typing import Any

import datasets
import numpy as np
import pytest

from cera.data import ChatDataset, DataError, MetaMathQA, ReasoningGymWordProblems, SlimOrca
from cera.data.chat import IGNORE, ChatEncoder
from cera.data.datamodule import ChatData
from cera.data.stream import BatchStream, ShuffledRows

CONVERSATION = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "No."},
]


@pytest.fixture
def text_file(tmp_path, monkeypatch):
    """A file of 20 conversations that tell their numbers."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    turns = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": str(n)}] for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    return str(tmp_path / "rows.jsonl")


# Labels


def labelled(tokenizer, **options: Any) -> str:
    """The text of the tokens with loss."""
    document = ChatEncoder(tokenizer, 256, **options)(CONVERSATION)
    assert document is not None
    assert all(label in (IGNORE, token) for label, token in zip(document.labels, document.input_ids, strict=True))
    return tokenizer.decode([label for label in document.labels if label != IGNORE])


def test_loss_on_answers_or_all_with_or_without_their_ends(tokenizer) -> None:
    assert labelled(tokenizer) == "So.<|im_end|>No.<|im_end|>"
    assert labelled(tokenizer, loss_on_end=False) == "So.No."
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False).removeprefix("<|im_start|>")
    assert labelled(tokenizer, loss_on="all") == text  # but for the first token, which nothing predicts
    without = text.replace("So.<|im_end|>", "So.").replace("No.<|im_end|>", "No.")
    assert labelled(tokenizer, loss_on="all", loss_on_end=False) == without


def test_predictions_are_of_answers_whatever_the_loss_is_on(smol) -> None:
    data = ChatData(ReasoningGymWordProblems(size=10), smol, validation_rows=2, loss_on="all")
    data.setup("predict")
    assert data.validation_stream is not None
    assert data.validation_stream.encoder.loss_on == "answer"
    data = ChatData(ReasoningGymWordProblems(size=10), smol, validation_rows=2, loss_on="all")
    data.setup("fit")
    assert data.validation_stream is not None
    assert data.validation_stream.encoder.loss_on == "all"


# Rows


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_part(text_file, streaming) -> None:
    dataset = ChatDataset(text_file, streaming=streaming, rows=(5, 9))
    dataset.check()
    numbers = [int((dataset.parse(raw) or [])[-1]["content"]) for raw in dataset.load()]
    assert numbers == [5, 6, 7, 8]


def test_rows_that_are_not_there_are_one_line(text_file) -> None:
    for rows in ((3, 3), (-1, 4)):
        with pytest.raises(DataError, match=r"ChatDataset\.rows must be the first row and the one after the last"):
            ChatDataset(text_file, rows=rows).check()
    with pytest.raises(DataError, match=r"rows=\[10, 21\]: the set has 20 rows"):
        ChatDataset(text_file, rows=(10, 21)).load()
    with pytest.raises(DataError, match=r"rows=\[0, 31\]: the set has 30 rows"):
        ReasoningGymWordProblems(size=30, rows=(0, 31)).check()


def test_a_malformed_row_has_its_number_in_the_whole_set(smol, text_file, caplog) -> None:
    with open(text_file, "a") as file:
        file.write('{"messages": []}\n')
    data = ChatData(ChatDataset(text_file, rows=(15, 21)), smol, validation_rows=1, max_malformed=1.0, batch_size=1)
    data.setup()
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert "malformed row 20 of ChatDataset" in caplog.text


def test_first_turns() -> None:
    turns = [("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    raw = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    assert SlimOrca(turns="first").parse(raw) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    assert len(SlimOrca().parse(raw) or []) == 5


def test_metamathqa_leaves_out_long_rows() -> None:
    raw = {"query": "q" * 10, "response": "r" * 9, "type": "GSM_Rephrased"}
    assert MetaMathQA(most_characters=20).parse(raw) == [
        {"role": "user", "content": "q" * 10},
        {"role": "assistant", "content": "r" * 9},
    ]
    assert MetaMathQA(most_characters=19).parse(raw) is None
    assert MetaMathQA().parse(raw) is not None


# With replacement


def drawn(rows: ShuffledRows, epoch: int = 0, state: Any = None) -> list[int]:
    return [number for number, _, _ in rows(epoch, state)]


def numbered(n: int, **options: Any) -> ShuffledRows:
    return ShuffledRows(datasets.Dataset.from_dict({"n": list(range(n))}), buffer=7, **options)


def test_rows_with_replacement_are_uniform_and_independent() -> None:
    n = 2000
    rows = numbered(n, seed=1, with_replacement=True)
    first = drawn(rows)
    assert len(first) == n
    # of n draws the expected share of rows that are never drawn is (1 - 1/n)^n, about 1/e
    assert 1 - len(set(first)) / n == pytest.approx(np.exp(-1), abs=0.04)
    counts = Counter(first)
    assert sum(count * (count - 1) for count in counts.values()) / n == pytest.approx(1, abs=0.2)  # as of Poisson(1)
    assert drawn(rows) == first
    assert drawn(rows, epoch=1) != first
    assert drawn(numbered(n, seed=2, with_replacement=True)) != first
    assert sorted(drawn(numbered(n, seed=1))) == list(range(n))  # every row once without it


def test_rows_with_replacement_resume_at_any_row() -> None:
    rows = numbered(30, seed=3, with_replacement=True)
    whole = list(rows(2, None))
    for number, (_, _, state) in enumerate(whole[:-1]):
        assert drawn(rows, 2, state) == [n for n, _, _ in whole[number + 1 :]]


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 2)])
def test_a_seed_draws_the_same_steps_on_any_layout(smol, world_size, accumulate) -> None:
    def steps(world_size: int, accumulate: int) -> list[list[list[int]]]:
        options = {"validation_rows": 4, "with_replacement": True, "packing": False}
        data = ChatData(ReasoningGymWordProblems(size=24), smol, **options)
        data.setup()
        stream = copy.copy(data.train_stream)
        assert isinstance(stream, BatchStream)
        stream.batch_size, stream.world_size, stream.accumulate = 4 // world_size // accumulate, world_size, accumulate
        return [[pack[0].input_ids for pack in packs] for packs, _ in stream.steps(stream.position)]

    assert steps(world_size, accumulate) == steps(1, 1)


def test_a_stream_cannot_be_drawn_with_replacement(text_file, smol) -> None:
    with pytest.raises(ValueError, match=r"data\.with_replacement needs random access"):
        ChatData(ChatDataset(text_file, streaming=True), smol, with_replacement=True)
