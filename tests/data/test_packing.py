"""Packs hold every document once, and a packed document has the loss that it has alone."""

import time
from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_rows import losses
from transformers import AutoModelForCausalLM

from cera.data.chat import IGNORE, Document
from cera.data.packing import Pack, Packer, collate, count_labels, dump_packs, load_packs

MAX_LENGTH = 24
LENGTHS = st.lists(st.integers(1, MAX_LENGTH), max_size=40)


def numbered(lengths: list[int]) -> list[Document]:
    """Documents of these lengths, no two with the same tokens; every second token is labelled."""
    documents = []
    for number, length in enumerate(lengths):
        ids = [1000 * (number + 1) + i for i in range(length)]
        documents.append(Document(ids, [token if i % 2 else IGNORE for i, token in enumerate(ids)]))
    return documents


def packed(documents: list[Document], max_open: int = 4, max_length: int = MAX_LENGTH) -> list[Pack]:
    """All packs of ``documents``, in the order in which they are closed."""
    packer = Packer(max_length, max_open)
    closed = [pack for pack in map(packer.add, documents) if pack is not None]
    return closed + packer.flush()


def tokens(pack: Pack) -> int:
    return sum(map(len, pack))


# The packer


@given(LENGTHS, st.integers(1, 6))
def test_every_document_comes_out_exactly_once_and_no_pack_is_too_long(lengths, max_open) -> None:
    documents = numbered(lengths)
    packs = packed(documents, max_open)
    out = Counter(tuple(document.input_ids) for pack in packs for document in pack)
    assert out == Counter(tuple(document.input_ids) for document in documents)
    assert all(pack and tokens(pack) <= MAX_LENGTH for pack in packs)


@given(LENGTHS, st.integers(1, 6))
def test_never_more_than_max_open_packs_are_open(lengths, max_open) -> None:
    packer = Packer(MAX_LENGTH, max_open)
    for document in numbered(lengths):
        packer.add(document)
        assert len(packer.open) <= max_open
    packer.flush()
    assert packer.open == []


@given(LENGTHS, st.integers(1, 6))
def test_no_two_open_packs_would_fit_into_one(lengths, max_open) -> None:
    packer = Packer(MAX_LENGTH, max_open)
    for document in numbered(lengths):
        packer.add(document)
        assert all(tokens(a) + tokens(b) > MAX_LENGTH for a, b in combinations(packer.open, 2))


@given(LENGTHS, st.integers(1, 6), st.integers(0, 40))
def test_a_packer_restored_from_its_open_packs_goes_on_alike(lengths, max_open, split) -> None:
    documents = numbered(lengths)
    before = Packer(MAX_LENGTH, max_open)
    closed = [pack for pack in map(before.add, documents[:split]) if pack]
    after = Packer(MAX_LENGTH, max_open)
    after.open = load_packs(dump_packs(before.open))
    closed += [pack for pack in map(after.add, documents[split:]) if pack] + after.flush()
    assert closed == packed(documents, max_open)


def test_a_document_goes_into_the_fullest_pack_that_has_room_for_it() -> None:
    six, five, four = documents = numbered([6, 5, 4])
    packer = Packer(max_length=10, max_open=4)
    for document in documents:
        assert packer.add(document) is None
    assert packer.open == [[six, four], [five]]


def test_the_fullest_pack_is_closed_when_too_many_are_open() -> None:
    six, nine, seven = documents = numbered([6, 9, 7])
    packer = Packer(max_length=10, max_open=2)
    assert [packer.add(document) for document in documents] == [None, None, [nine]]
    assert packer.flush() == [[seven], [six]]


@given(LENGTHS)
def test_dumped_packs_are_plain_data_and_load_again(lengths) -> None:
    packs = [*packed(numbered(lengths)), []]
    dumped = dump_packs(packs)
    assert all(type(x) is int for pack in dumped for document in pack for part in document for x in part)
    assert load_packs(dumped) == packs


@given(LENGTHS)
def test_labels_are_counted_over_all_packs(lengths) -> None:
    assert count_labels(packed(numbered(lengths))) == sum(length // 2 for length in lengths)


# The batch


@given(st.lists(LENGTHS, min_size=1, max_size=4))
def test_collate_lays_documents_out_one_after_the_other(rows) -> None:
    packs = [numbered(lengths) for lengths in rows]
    batch = collate(packs, pad_token_id=7)
    longest = max(1, *map(tokens, packs))
    for name in ("input_ids", "labels", "position_ids"):
        assert batch[name].shape == (len(packs), longest)
        assert batch[name].dtype == torch.int64
    assert batch["n_tokens"] == sum(map(sum, rows))
    for row, pack in enumerate(packs):
        padding = longest - tokens(pack)
        expected_ids = [token for document in pack for token in document.input_ids] + [7] * padding
        expected_labels = [label for document in pack for label in document.labels] + [IGNORE] * padding
        positions = [i for part in (*map(len, pack), padding) for i in range(part)]
        assert batch["input_ids"][row].tolist() == expected_ids
        assert batch["labels"][row].tolist() == expected_labels
        assert batch["position_ids"][row].tolist() == positions


def test_an_empty_pack_is_a_row_of_padding_without_labels() -> None:
    batch = collate([[]], pad_token_id=7)
    assert batch["input_ids"].tolist() == [[7]]
    assert batch["labels"].tolist() == [[IGNORE]]
    assert batch["position_ids"].tolist() == [[0]]
    assert batch["n_tokens"] == 0


# No contamination


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request, tiny_llama):
    """The small Llama in fp32, without a cache, as it is trained."""
    model = AutoModelForCausalLM.from_pretrained(
        tiny_llama, dtype=torch.float32, attn_implementation=request.param
    ).eval()
    model.config.use_cache = False
    assert model.config._attn_implementation == request.param
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model gains nothing from more, and they wait for each other
    yield model
    torch.set_num_threads(threads)


@st.composite
def random_documents(draw) -> list[Document]:
    """Documents of random tokens, in which a random part after the first token is labelled."""
    documents = []
    for _ in range(draw(st.integers(1, 6))):
        ids = draw(st.lists(st.integers(3, 48_000), min_size=2, max_size=MAX_LENGTH))
        start = draw(st.integers(1, len(ids) - 1))
        documents.append(Document(ids, [IGNORE] * start + ids[start:]))
    return documents


@settings(max_examples=8, deadline=None)
@given(random_documents())
def test_each_packed_document_has_the_losses_that_it_has_alone(model, documents) -> None:
    packs = packed(documents)
    in_packs = losses(model, packs)
    alone = [losses(model, [[document]])[0] for pack in packs for document in pack]
    for packed_losses, own_losses in zip(in_packs, alone, strict=True):
        torch.testing.assert_close(packed_losses, own_losses, rtol=0, atol=1e-5)


@settings(max_examples=5, deadline=None)
@given(random_documents(), random_documents())
def test_changing_a_document_changes_no_other_documents_losses(model, documents, others) -> None:
    before = losses(model, [documents])
    for i, document in enumerate(documents):
        source = others[i % len(others)].input_ids
        ids = [(token + 1 + source[j % len(source)]) % 49_000 for j, token in enumerate(document.input_ids)]
        changed = Document(ids, [IGNORE if label == IGNORE else ids[j] for j, label in enumerate(document.labels)])
        after = losses(model, [[*documents[:i], changed, *documents[i + 1 :]]])
        for j, (old, new) in enumerate(zip(before, after, strict=True)):
            if j == i:
                assert not torch.allclose(old, new, rtol=0, atol=1e-4)
            else:
                torch.testing.assert_close(old, new, rtol=0, atol=1e-6)


def test_without_restarted_positions_documents_would_see_each_other(model) -> None:
    # the two tests above can tell: the same row as one sequence has other losses
    torch.manual_seed(0)
    documents = [Document(ids, [IGNORE, *ids[1:]]) for ids in torch.randint(3, 49_000, (2, 8)).tolist()]
    apart = losses(model, [documents])
    together = losses(model, [documents], position_ids=torch.arange(16)[None])
    torch.testing.assert_close(together[0], apart[0], rtol=0, atol=1e-5)
    assert not torch.allclose(together[1], apart[1], rtol=0, atol=1e-2)


def test_packs_of_many_short_documents_take_time_in_proportion() -> None:
    packer = Packer(10**6, max_open=16)
    start = time.monotonic()
    for _ in range(50_000):
        packer.add(Document([1, 2], [1, 2]))
    assert time.monotonic() - start < 5
    assert [len(pack) for pack in packer.flush()] == [50_000]
