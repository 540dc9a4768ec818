"""General text as batches: what is read, what is left out, and which tokens have loss."""

import json
from itertools import pairwise

import datasets
import pytest
import torch

from cera.data import DataError, PlainText, PythonDocumentation, WikiText2
from cera.data.chat import IGNORE
from cera.data.texts import text_batches
from cera.training.documents import split_documents


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A file of texts; the second is blank, the fourth beyond the first three rows."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    texts = ["The first text.", " ", "A third one that is longer than that.", "A fourth."]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return PlainText(str(tmp_path / "texts.jsonl"), most_rows=3, fewest_characters=2)


def test_rows_are_counted_before_short_ones_are_left_out(source) -> None:
    source.check()
    assert list(source.texts()) == ["The first text.", "A third one that is longer than that."]
    assert (WikiText2().most_rows, WikiText2().fewest_characters, WikiText2().split) == (500, 21, "test")


def test_a_row_that_is_no_text_is_named(tmp_path, source) -> None:
    (tmp_path / "other.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    with pytest.raises(DataError, match="row 1 of PlainText: text is int"):
        list(PlainText(str(tmp_path / "other.jsonl")).texts())


@pytest.mark.parametrize("packing", [True, False])
def test_every_token_but_a_texts_first_has_loss(tokenizer, source, packing) -> None:
    (batch,) = text_batches(source, tokenizer, 4, 2, 16, packing)
    documents = [(ids, labels) for ids, labels in split_documents(batch) if (labels != IGNORE).any()]
    expected = [tokenizer(text)["input_ids"] for text in source.texts()]
    starts = [ids.tolist()[: len(tokens)] for (ids, _), tokens in zip(documents, expected, strict=True)]
    assert starts == expected
    for ids, labels in documents:
        assert labels[0] == IGNORE
        assert torch.equal(labels[labels != IGNORE], ids[1 : 1 + int((labels != IGNORE).sum())])


def test_long_texts_are_cut_and_batches_are_no_more_than_asked_for(tokenizer) -> None:
    batches = text_batches(PythonDocumentation(), tokenizer, 3, 2, 32, packing=True)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 32)] * 3


def test_python_s_documentation_is_english_and_in_order() -> None:
    texts = list(PythonDocumentation().texts())
    assert len(texts) > 50
    assert sum(map(len, texts)) > 300_000
    assert 'The "assert" statement' in texts[0]
    assert all(a != b for a, b in pairwise(texts))
    with pytest.raises(DataError, match="takes no data_files"):
        PythonDocumentation("a.jsonl").check()


def test_no_text_is_one_line(tokenizer, tmp_path, source) -> None:
    (tmp_path / "short.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="has no text of two tokens or more"):
        text_batches(PlainText(str(tmp_path / "short.jsonl")), tokenizer, 1, 1, 8, packing=True)
