"""Which rows were measured: positions, identity of the documents, and what is said if two adapters' differ."""

import pytest
import torch

from cera.data.chat import Document
from cera.data.packing import collate
from cera.spectral.sample import (
    FINGERPRINTS,
    IGNORE,
    Sample,
    differing_samples,
    fingerprint,
    measured_tokens,
    pad_to_longest,
)

PAD = 0
DOCUMENTS = [
    Document(ids, [IGNORE] * (len(ids) - 2) + ids[-2:]) for ids in ([5, 6, 7], [8, 9, 10, 11, 12], [5, 7], [5, 6, 7])
]


def packed(*rows: list[int]) -> dict:
    return collate([[DOCUMENTS[i] for i in row] for row in rows], PAD)


def test_positions():
    batch = packed([0, 2], [1])
    assert measured_tokens(batch, "with_padding") is None
    assert measured_tokens(packed([0], [1]), "all").sum(1).tolist() == [3, 5]
    answer = measured_tokens(packed([0], [1]), "answer")
    assert answer.tolist() == [[False, True, True, False, False], [False, False, False, True, True]]
    assert measured_tokens({"input_ids": torch.ones(1, 2)}, "all") is None
    with pytest.raises(ValueError, match="tokens must be all or with_padding for batches without labels"):
        measured_tokens({"input_ids": torch.ones(1, 2)}, "answer")


def test_the_fingerprint_is_of_the_documents_however_they_are_batched():
    every = fingerprint(packed([0, 1], [2, 3]))
    assert every == fingerprint(packed([3], [1, 2, 0]))
    alone = [fingerprint(packed([i])) for i in range(4)]
    assert every == sum(alone) % FINGERPRINTS
    padded = pad_to_longest([packed([0], [1]), packed([2], [3])], PAD)
    assert every == sum(fingerprint(batch) for batch in padded) % FINGERPRINTS
    assert every != fingerprint(packed([0, 1], [2]))  # a document less, which is the first one once more
    assert every != fingerprint(packed([1], [0], [2]))
    assert fingerprint(packed([0, 2])) != fingerprint(packed([0])) != fingerprint(packed([1]))


def test_a_fingerprint_needs_token_ids():
    assert fingerprint(None) is fingerprint({"x": torch.ones(1, 2)}) is None
    ids, mask = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    other = ids.where(mask.bool(), 9)
    assert fingerprint({"input_ids": ids, "attention_mask": mask}) == fingerprint(
        {"input_ids": other, "attention_mask": mask}
    )
    assert fingerprint({"input_ids": ids}) != fingerprint({"input_ids": other})


def test_padding_goes_on_to_the_longest_row_of_all_batches():
    first, second = pad_to_longest([packed([0], [2]), packed([1])], 3)
    assert first["input_ids"].tolist() == [[5, 6, 7, 3, 3], [5, 7, PAD, 3, 3]]
    assert first["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert first["tokens"].tolist() == [[True] * 3 + [False] * 2, [True] * 2 + [False] * 3]
    assert first["labels"][0].tolist() == [IGNORE, 6, 7, IGNORE, IGNORE]
    assert second["input_ids"].shape == (1, 5)


def test_other_rows_are_one_sentence_that_names_both():
    same = Sample("all", 1024, "0123456789abcdef")
    assert differing_samples({"a": same, "b": same}) is None
    assert differing_samples({"a": Sample(), "b": Sample()}) is None  # both of an earlier version
    assert differing_samples({"a": same}) is differing_samples({}) is None
    for other, words in (
        (Sample("all", 512, same.data), "512 tokens of data 01234567"),
        (Sample("answer", 1024, same.data), "1,024 answer tokens of data 01234567"),
        (Sample("all", 1024, "f" * 16), "1,024 tokens of data ffffffff"),
        (Sample(), "an unrecorded number of tokens of unrecorded data"),
    ):
        sentence = differing_samples({"CeRA": same, "LoRA": same, "DoRA": other})
        assert sentence == (f"Not comparable: CeRA was measured on 1,024 tokens of data 01234567, and DoRA on {words}.")
