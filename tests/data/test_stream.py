"""The stream: every row once, the same on any layout, resumable after any step, and nothing held out leaks in."""

import copy
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cera.data import ChatDataset, DataError, MathInstruct, ReasoningGymWordProblems
from cera.data.chat import IGNORE, ChatEncoder, TemplateError
from cera.data.datamodule import ChatData
from cera.data.stream import BatchStream, ShuffledRows, start_of_epoch
from cera.runs.checkpoints import CheckpointError

LENGTH = 48
N = 60
KINDS = pytest.mark.parametrize("kind", ["map", "stream"])
PACKING = pytest.mark.parametrize("packing", [True, False], ids=["packed", "unpacked"])


@pytest.fixture(autouse=True)
def _by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` caches out of the user's cache, and its count of uses off the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)


@pytest.fixture(scope="module")
def encoder(tokenizer) -> ChatEncoder:
    return ChatEncoder(tokenizer, LENGTH)


def row(number: int) -> dict[str, Any]:
    """A conversation that tells its number, with 20 to 40 tokens."""
    turns = {"system": "s", "user": "why? " * (number * 7 % 8), "assistant": f"row {number}" + " so" * (number % 5)}
    return {"messages": [{"role": role, "content": content} for role, content in turns.items()]}


BAD = {"messages": [{"role": "user", "content": "no answer"}]}


def write(path: Path, rows: Iterable[Any]) -> str:
    """``rows`` as a .jsonl file; text stands for a line as it is."""
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


class Source:
    """The same rows as a set with random access or as a stream of two files."""

    def __init__(self, folder: Path, kind: str, rows: list[Any] | None = None) -> None:
        rows = [row(i) for i in range(N)] if rows is None else rows
        half = len(rows) // 3
        files = [write(folder / "one.jsonl", rows[:half]), write(folder / "two.jsonl", rows[half:])]
        self.dataset = ChatDataset(files, streaming=kind == "stream")
        self.rows = self.dataset.load()

    def stream(self, encoder: ChatEncoder, seed: int | None = 0, batch_size: int = 2, **options: Any) -> BatchStream:
        return BatchStream(self.dataset, ShuffledRows(self.rows, seed, buffer=7), encoder, batch_size, **options)


def numbers(encoder: ChatEncoder, batch: dict[str, Any]) -> list[int]:
    """The numbers of the rows in a batch."""
    return [number for pack in packs(encoder, batch) for number in pack]


def packs(encoder: ChatEncoder, batch: dict[str, Any]) -> list[tuple[int, ...]]:
    """The numbers of the rows in each pack that is not empty."""
    texts = [encoder.tokenizer.decode(labels[labels != IGNORE]) for labels in batch["labels"]]
    row_numbers = [tuple(int(number) for number in re.findall(r"row (\d+)", text)) for text in texts]
    return [pack for pack in row_numbers if pack]


def all_numbers(encoder: ChatEncoder, batches: Iterable[dict[str, Any]]) -> list[int]:
    return [number for batch in batches for number in numbers(encoder, batch)]


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` after a checkpoint file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same_batches(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        for name in ("input_ids", "labels", "position_ids"):
            assert torch.equal(our[name], their[name])
        assert our["step_labels"] == their["step_labels"]
        assert our["n_tokens"] == their["n_tokens"]
        ours_at, theirs_at = (b["position"] and b["position"].state["epoch"] for b in (our, their))
        assert ours_at == theirs_at


# Every row once


@KINDS
@PACKING
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_no_row_twice_and_none_lost(tmp_path, encoder, kind, packing, accumulate, world_size) -> None:
    source = Source(tmp_path, kind)
    ranks = [
        list(source.stream(encoder, packing=packing, accumulate=accumulate, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert Counter(n for batches in ranks for n in all_numbers(encoder, batches)) == Counter(range(N))
    [length] = {len(batches) for batches in ranks}  # every rank makes every step
    assert length % accumulate == 0
    assert all(len(batch["input_ids"]) <= 2 for batches in ranks for batch in batches)


@pytest.mark.parametrize(("kind", "num_workers"), [("map", 1), ("map", 2), ("stream", 1), ("stream", 2)])
def test_workers_read_the_same_batches_in_the_same_order(tmp_path, encoder, kind, num_workers) -> None:
    source = Source(tmp_path, kind)
    for rank in range(2):
        stream = source.stream(encoder, accumulate=2, rank=rank, world_size=2)
        loaded = list(DataLoader(stream, batch_size=None, num_workers=num_workers))
        expected = list(stream)
        assert_same_batches(loaded, expected)
        ours, theirs = ([b["position"] and b["position"].state for b in batches] for batches in (loaded, expected))
        assert ours == theirs


@KINDS
def test_workers_go_on_from_a_position(tmp_path, encoder, kind) -> None:
    stream = Source(tmp_path, kind).stream(encoder)
    batches = list(stream)
    stream.position = batches[2]["position"].state
    assert_same_batches(list(DataLoader(stream, batch_size=None, num_workers=2)), batches[3:])


@PACKING
def test_documents_arrive_as_they_were_encoded(tmp_path, encoder, packing) -> None:
    batches = list(Source(tmp_path, "map").stream(encoder, packing=packing))
    arrived = []
    for batch in batches:
        for ids, labels, positions in zip(batch["input_ids"], batch["labels"], batch["position_ids"], strict=True):
            starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
            segments = [(ids[a:b].tolist(), labels[a:b].tolist()) for a, b in pairwise(starts)]
            arrived += [segment for segment in segments if set(segment[1]) != {IGNORE}]
    documents = [encoder(row(i)["messages"]) for i in range(N)]
    assert sorted(arrived) == sorted((document.input_ids, document.labels) for document in documents)
    per_row = [len(pack) for batch in batches for pack in packs(encoder, batch)]
    assert (max(per_row) > 1) == packing


# The same on any layout


@KINDS
@PACKING
@pytest.mark.parametrize("layout", [(2, 2, 1), (4, 1, 1), (1, 2, 2), (2, 1, 2), (1, 1, 4)])
def test_a_step_has_the_same_packs_on_any_layout(tmp_path, encoder, kind, packing, layout) -> None:
    source = Source(tmp_path, kind)

    def steps(world_size: int, batch_size: int, accumulate: int) -> list[tuple[list[tuple[int, ...]], int]]:
        options = {"batch_size": batch_size, "accumulate": accumulate, "packing": packing, "world_size": world_size}
        ranks = [list(source.stream(encoder, rank=rank, **options)) for rank in range(world_size)]
        made = []
        for start in range(0, len(ranks[0]), accumulate):
            micro_batches = [batch for batches in ranks for batch in batches[start : start + accumulate]]
            [step_labels] = {batch["step_labels"] for batch in micro_batches}
            made.append((sorted(pack for batch in micro_batches for pack in packs(encoder, batch)), step_labels))
        return made

    assert steps(*layout) == steps(world_size=1, batch_size=4, accumulate=1)


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (3, 2)])
def test_step_labels_are_the_labels_of_all_ranks_and_micro_batches(tmp_path, encoder, world_size, accumulate) -> None:
    source = Source(tmp_path, "map")
    ranks = [
        list(source.stream(encoder, accumulate=accumulate, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for start in range(0, len(ranks[0]), accumulate):
        micro_batches = [batch for batches in ranks for batch in batches[start : start + accumulate]]
        labelled = sum((batch["labels"] != IGNORE).sum().item() for batch in micro_batches)
        assert labelled > 0
        assert {batch["step_labels"] for batch in micro_batches} == {labelled}


@PACKING
def test_n_tokens_counts_everything_but_padding(tmp_path, encoder, packing) -> None:
    lengths = [len(encoder(row(i)["messages"])) for i in range(N)]
    for batch in Source(tmp_path, "map").stream(encoder, packing=packing, world_size=3, rank=2):
        assert batch["n_tokens"] == sum(lengths[number] for number in numbers(encoder, batch))


# Going on


@KINDS
@PACKING
@pytest.mark.parametrize("epoch", [0, 1])
def test_resuming_after_any_step_gives_the_remaining_batches(tmp_path, encoder, kind, packing, epoch) -> None:
    source = Source(tmp_path, kind)
    stream = source.stream(encoder, packing=packing, batch_size=3)
    stream.position = start_of_epoch(epoch)
    batches = list(stream)
    assert len(batches) > 5
    for done, batch in enumerate(batches[:-1], start=1):
        resumed = source.stream(encoder, packing=packing, batch_size=3)
        resumed.position = saved(batch["position"].state)
        assert_same_batches(list(resumed), batches[done:])
    assert saved(batches[-1]["position"].state) == start_of_epoch(epoch + 1)


@KINDS
def test_only_the_last_micro_batch_of_a_step_moves_the_position(tmp_path, encoder, kind) -> None:
    source = Source(tmp_path, kind)
    batches = list(source.stream(encoder, batch_size=1, accumulate=3))
    for i, batch in enumerate(batches):
        if (i + 1) % 3:
            assert batch["position"] is None
            continue
        resumed = source.stream(encoder, batch_size=1, accumulate=3)
        resumed.position = saved(batch["position"].state)
        if i < len(batches) - 1:
            assert_same_batches(list(resumed), batches[i + 1 :])


@KINDS
@pytest.mark.parametrize("layout", [(2, 1, 1), (3, 2, 1), (1, 1, 2), (1, 7, 1)])
def test_resuming_on_another_layout_goes_on_with_the_same_rows(tmp_path, encoder, kind, layout) -> None:
    world_size, batch_size, accumulate = layout
    source = Source(tmp_path, kind)
    before = list(source.stream(encoder, batch_size=4))
    for done in range(1, len(before)):
        seen = all_numbers(encoder, before[:done])
        for rank in range(world_size):
            resumed = source.stream(
                encoder, batch_size=batch_size, accumulate=accumulate, rank=rank, world_size=world_size
            )
            resumed.position = saved(before[done - 1]["position"].state)
            seen += all_numbers(encoder, resumed)
        assert Counter(seen) == Counter(range(N))


def test_resuming_with_fewer_open_packs_loses_nothing(tmp_path, encoder) -> None:
    source = Source(tmp_path, "map", [row(8 * i + 1) for i in range(60)])  # no two of them fit together
    first = next(iter(source.stream(encoder, batch_size=20)))
    resumed = source.stream(encoder, batch_size=1)
    resumed.position = saved(first["position"].state)
    assert len(resumed.position["open"]) > 16
    assert Counter(all_numbers(encoder, [first, *resumed])) == Counter(range(1, 480, 8))


@KINDS
def test_the_same_layout_and_packs_of_a_step_on_more_ranks_after_a_resume(tmp_path, encoder, kind) -> None:
    source = Source(tmp_path, kind)
    batches = list(source.stream(encoder, batch_size=4))
    ranks = []
    for rank in range(2):
        resumed = source.stream(encoder, batch_size=2, rank=rank, world_size=2)
        resumed.position = saved(batches[1]["position"].state)
        ranks.append(list(resumed))
    union = [[pack for batch in step for pack in packs(encoder, batch)] for step in zip(*ranks, strict=True)]
    assert union == [packs(encoder, batch) for batch in batches[2:]]


@KINDS
def test_malformed_rows_at_the_end_are_not_counted_again_after_a_resume(tmp_path, encoder, kind) -> None:
    rows = [row(i) for i in range(150)] + [BAD]
    source = Source(tmp_path, kind, rows)
    batches = list(source.stream(encoder, seed=None, max_malformed=1 / 151))
    for done, batch in enumerate(batches[:-1], start=1):
        resumed = source.stream(encoder, seed=None, max_malformed=1 / 151)
        resumed.position = saved(batch["position"].state)
        if done % 10 == 0 or done > len(batches) - 5:
            assert_same_batches(list(resumed), batches[done:])


@st.composite
def readings(draw) -> tuple[Any, int | None, int, int, int]:
    """A dataset, a seed, a block's size, an epoch, and after how many rows reading is interrupted."""
    n = draw(st.integers(0, 25))
    rows = datasets.Dataset.from_dict({"number": list(range(n))})
    if n and draw(st.booleans()):
        rows = rows.to_iterable_dataset(num_shards=draw(st.integers(1, min(3, n))))
        rows = rows.skip(draw(st.integers(0, 3))) if draw(st.booleans()) else rows.take(draw(st.integers(1, 30)))
    seed = draw(st.none() | st.integers(0, 2**32 - 1))
    return rows, seed, draw(st.integers(1, 10)), draw(st.integers(0, 3)), draw(st.integers(0, n))


@settings(max_examples=60, deadline=None)
@given(readings())
def test_rows_in_any_order_come_once_and_reading_goes_on_after_any_row(reading) -> None:
    rows, seed, buffer, epoch, stop = reading
    whole = list(ShuffledRows(rows, seed, buffer)(epoch, None))
    expected = [r["number"] for r in rows]
    assert sorted(r["number"] for _, r, _ in whole) == expected
    assert all(expected[number] == r["number"] for number, r, _ in whole)
    if seed is None:
        assert [r["number"] for _, r, _ in whole] == expected
    if 0 < stop <= len(whole):
        state = saved(whole[stop - 1][2])
        rest = list(ShuffledRows(rows, seed, buffer)(epoch, state))
        assert [(number, r) for number, r, _ in rest] == [(number, r) for number, r, _ in whole[stop:]]


# Order


@KINDS
def test_order_is_a_function_of_seed_and_epoch(tmp_path, encoder, kind) -> None:
    source = Source(tmp_path, kind)

    def order(seed: int | None, epoch: int) -> list[int]:
        stream = source.stream(encoder, seed=seed, packing=False)
        stream.position = start_of_epoch(epoch)
        return all_numbers(encoder, stream)

    assert order(0, 0) == order(0, 0)
    orders = [order(seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (None, 0))]
    assert len({tuple(o) for o in orders}) == 4
    assert all(sorted(o) == list(range(N)) for o in orders)
    assert order(None, 0) == order(None, 1) == list(range(N))


def test_a_stream_is_shuffled_within_its_blocks(tmp_path, encoder) -> None:
    order = all_numbers(encoder, Source(tmp_path, "stream").stream(encoder, packing=False))
    blocks = [order[start : start + 7] for start in range(0, N, 7)]
    assert [sorted(block) for block in blocks] == [list(range(start, min(start + 7, N))) for start in range(0, N, 7)]
    offsets = {tuple(number - min(block) for number in block) for block in blocks[:-1]}
    assert len(offsets) > 1  # each block has an order of its own


@KINDS
def test_after_an_epoch_the_position_is_the_start_of_the_next(tmp_path, encoder, kind) -> None:
    source = Source(tmp_path, kind)
    stream = source.stream(encoder)
    first = list(stream)
    stream.position = first[-1]["position"].state
    second = list(stream)
    assert stream.position == start_of_epoch(1)
    assert second[-1]["position"].state == start_of_epoch(2)
    assert Counter(all_numbers(encoder, second)) == Counter(range(N))
    assert all_numbers(encoder, second) != all_numbers(encoder, first)


# Rows that cannot be used


def broken(at: Iterable[int], total: int = N) -> list[Any]:
    """Rows of which those at ``at`` are malformed: no answer, not JSON, no messages, in turn."""
    rows: list[Any] = [row(i) for i in range(total)]
    for i, number in enumerate(at):
        rows[number] = (BAD, '{"messages": [', {"text": "x"})[i % 3]
    return rows


@KINDS
def test_malformed_rows_are_skipped_and_the_first_few_shown_by_number(tmp_path, encoder, kind, caplog) -> None:
    at = [3, 9, 10, 22, 39]
    stream = Source(tmp_path, kind, broken(at)).stream(encoder, max_malformed=0.2)
    with caplog.at_level(logging.WARNING, "cera.data.stream"):
        assert sorted(all_numbers(encoder, stream)) == [i for i in range(N) if i not in at]
    shown = [re.search(r"skipped malformed row (\d+) of ChatDataset: (.+)", m) for m in caplog.messages]
    assert len(shown) == 3
    reasons = {3: "no assistant turn", 9: "not JSON", 10: "missing messages or conversations; it has text"}
    reasons |= {22: reasons[3], 39: reasons[9]}
    assert all(reasons[int(match[1])] in match[2] for match in shown)
    assert len({match[1] for match in shown}) == 3


def test_only_the_first_rank_shows_malformed_rows(tmp_path, encoder, caplog) -> None:
    source = Source(tmp_path, "map", broken([3]))
    with caplog.at_level(logging.WARNING, "cera.data.stream"):
        assert list(source.stream(encoder, rank=1, world_size=2, max_malformed=0.2))
    assert caplog.messages == []


@KINDS
def test_rows_are_counted(tmp_path, encoder, kind) -> None:
    rows = broken([0, 1, 2])
    rows[3] = {"messages": [{"role": "user", "content": "why? " * LENGTH}, {"role": "assistant", "content": "late"}]}
    stream = Source(tmp_path, kind, rows).stream(encoder, seed=None, batch_size=1, packing=False, max_malformed=0.2)
    states = [batch["position"].state["counts"] for batch in stream]
    assert states[0] == {"rows": 5, "malformed": 3, "left_out": 1}
    assert states[-2] == {"rows": N - 1, "malformed": 3, "left_out": 1}


@KINDS
def test_too_many_malformed_rows_stop_the_epoch(tmp_path, encoder, kind) -> None:
    source = Source(tmp_path, kind, broken([5, 20, 30, 31]))
    with pytest.raises(DataError, match=r"4 of the first 60 rows of ChatDataset are malformed.*max_malformed=0\.05"):
        list(source.stream(encoder, max_malformed=0.05))
    assert list(source.stream(encoder, max_malformed=4 / N))


def test_too_many_malformed_rows_are_found_out_early(tmp_path, encoder) -> None:
    source = Source(tmp_path, "map", broken([0, 99], total=400))
    with pytest.raises(DataError, match="2 of the first 100 rows"):
        list(source.stream(encoder, seed=None, max_malformed=0.01))


def test_a_cluster_of_malformed_rows_at_the_beginning_is_no_reason_to_stop(tmp_path, encoder) -> None:
    source = Source(tmp_path, "map", broken(range(5), total=110))
    assert len(all_numbers(encoder, source.stream(encoder, seed=None, max_malformed=0.05))) == 105


def test_nothing_but_malformed_rows(tmp_path, encoder) -> None:
    source = Source(tmp_path, "map", broken(range(N)))
    with pytest.raises(DataError, match="60 of the first 60 rows"):
        list(source.stream(encoder))
    with pytest.raises(DataError, match=r"No row of ChatDataset gave a document.*60 rows read, 60 malformed"):
        list(source.stream(encoder, max_malformed=1))


@KINDS
def test_nothing_but_filtered_rows(tmp_path, encoder, kind) -> None:
    rows = [{"source": "data/CoT/x.json", "instruction": "q", "output": "a"}] * 5
    dataset = MathInstruct(write(tmp_path / "rows.jsonl", rows), streaming=kind == "stream", solutions="pot")
    stream = BatchStream(dataset, ShuffledRows(dataset.load(), 0, 3), encoder, batch_size=2)
    with pytest.raises(DataError, match=r"No row of MathInstruct gave a document.*0 malformed, 5 filtered out"):
        list(stream)


@pytest.mark.parametrize(
    "odd",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "half \ud83d a pair"}]},
        {"messages": [{"role": "assistant", "content": "Welcome."}, *row(99)["messages"][1:]]},
    ],
    ids=["lone surrogate", "answer first"],
)
def test_an_odd_row_does_not_end_the_run(tmp_path, encoder, odd) -> None:
    source = Source(tmp_path, "map", [*(row(i) for i in range(N)), odd])
    assert set(all_numbers(encoder, source.stream(encoder, max_malformed=0.1))) >= set(range(N))


def test_a_template_that_cannot_be_used_is_an_error_and_no_malformed_row(tmp_path, bad_template) -> None:
    with pytest.raises(TemplateError):
        list(Source(tmp_path, "map").stream(bad_template, max_malformed=1))


@pytest.fixture
def bad_template(tokenizer) -> ChatEncoder:
    """An encoder whose template has another generation prompt than turn."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}Bot:{% endif %}"
    )
    return ChatEncoder(tokenizer, LENGTH)


# The DataModule


def chat_data(
    tmp_path: Path, tokenizer: str, kind: str = "map", rows: list[Any] | None = None, **options: Any
) -> ChatData:
    """Sixty rows, ten of them held out, set up outside of a trainer."""
    dataset = ChatDataset(write(tmp_path / "rows.jsonl", rows or map(row, range(N))), streaming=kind == "stream")
    numbers = {"validation_rows": 10, "batch_size": 2, "max_length": LENGTH, "shuffle_buffer": 7}
    data = ChatData(dataset, tokenizer, **{**numbers, **options})
    data.check()
    data.setup()
    assert data.trainer is None
    return data


@KINDS
def test_held_out_rows_are_not_trained_on_whatever_the_seed(tmp_path, tiny_llama, encoder, kind) -> None:
    held_out, trained = [], []
    for seed in (0, 1):
        data = chat_data(tmp_path, tiny_llama, kind, seed=seed)
        held_out.append(all_numbers(encoder, data.val_dataloader()))
        trained.append(all_numbers(encoder, data.train_dataloader()))
        assert not set(held_out[-1]) & set(trained[-1])
        assert sorted(held_out[-1] + trained[-1]) == list(range(N))
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 10
    assert trained[0] != trained[1]
    assert (sorted(held_out[0]) == list(range(10))) == (kind == "stream")  # its first rows; else a random choice


@KINDS
def test_a_malformed_row_is_shown_by_its_number_in_the_file(tmp_path, tiny_llama, kind, caplog) -> None:
    data = chat_data(tmp_path, tiny_llama, kind, broken([25]), max_malformed=0.2)
    with caplog.at_level(logging.WARNING, "cera.data.stream"):
        assert [list(data.train_dataloader()), list(data.val_dataloader())]
    assert [re.findall(r"malformed row (\d+)", message) for message in caplog.messages] == [["25"]]


def test_validation_is_the_same_at_every_pass(tmp_path, tiny_llama) -> None:
    data = chat_data(tmp_path, tiny_llama)
    assert_same_batches(list(data.val_dataloader()), list(data.val_dataloader()))


@KINDS
@pytest.mark.parametrize(("validation_rows", "expected"), [(0, 8), (3, 3)])
def test_a_validation_set_of_its_own(tmp_path, tiny_llama, encoder, kind, validation_rows, expected) -> None:
    file = write(tmp_path / "validation.jsonl", [row(i) for i in range(100, 108)])
    validation = ChatDataset(file, streaming=kind == "stream")
    data = chat_data(tmp_path, tiny_llama, kind, validation=validation, validation_rows=validation_rows)
    assert sorted(all_numbers(encoder, data.val_dataloader())) == list(range(100, 100 + expected))
    assert sorted(all_numbers(encoder, data.train_dataloader())) == list(range(N))


@pytest.mark.parametrize("validation_rows", [N, N + 5])
def test_validation_rows_must_leave_something_to_train_on(tmp_path, tiny_llama, validation_rows) -> None:
    with pytest.raises(ValueError, match=rf"data.validation_rows={validation_rows} leaves nothing.* has 60 rows"):
        chat_data(tmp_path, tiny_llama, validation_rows=validation_rows)


def test_validation_rows_that_use_up_a_stream_are_an_error(tmp_path, tiny_llama) -> None:
    data = chat_data(tmp_path, tiny_llama, "stream", validation_rows=N)
    with pytest.raises(DataError, match="0 rows read"):
        list(data.train_dataloader())


@PACKING
@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_per_epoch_is_the_number_of_steps_made(tmp_path, tiny_llama, packing, accumulate) -> None:
    data = chat_data(tmp_path, tiny_llama, packing=packing)
    data.train_stream.accumulate = accumulate
    steps = data.steps_per_epoch()
    batches = list(data.train_dataloader())  # from the beginning: counting has not moved the stream
    assert steps * accumulate == len(batches)
    assert steps > 1


def test_steps_per_epoch_is_that_of_a_whole_epoch_after_a_resume(tmp_path, tiny_llama) -> None:
    data = chat_data(tmp_path, tiny_llama)
    batches = list(data.train_dataloader())
    resumed = chat_data(tmp_path, tiny_llama)
    resumed.load_state_dict({**data.state_dict(), "position": saved(batches[3]["position"].state)})
    assert resumed.steps_per_epoch() == len(batches)


def test_steps_per_epoch_of_a_stream_is_an_error(tmp_path, tiny_llama) -> None:
    with pytest.raises(ValueError, match=r"trainer.max_steps must be set"):
        chat_data(tmp_path, tiny_llama, "stream").steps_per_epoch()


@KINDS
def test_state_goes_from_one_data_module_to_another(tmp_path, tiny_llama, kind) -> None:
    data = chat_data(tmp_path, tiny_llama, kind)
    assert data.state_dict()["position"] == start_of_epoch(0)
    batches = list(data.train_dataloader())
    data.train_stream.position = batches[2]["position"].state
    resumed = chat_data(tmp_path, tiny_llama, kind)
    resumed.load_state_dict(saved(data.state_dict()))
    assert_same_batches(list(resumed.train_dataloader()), batches[3:])


@pytest.mark.parametrize("size", [40, 41])
def test_the_state_of_a_checkpoint_from_before_the_dataset_was_renamed(tiny_llama, size) -> None:
    checkpoint = REPOSITORY / "tests" / "fixtures" / "earlier" / "cera_stopped" / "checkpoints" / "step=3.ckpt"
    state = torch.load(checkpoint, weights_only=False)["ChatData"]
    assert json.loads(state["identity"])["dataset"]["class"] == "GSMSymbolic"
    data = ChatData(
        ReasoningGymWordProblems(size=size), tiny_llama, validation_rows=4, max_length=128, batch_size=2, seed=42
    )
    if size == 40:
        data.load_state_dict(state)
        assert data.train_stream.position == state["position"]
        assert next(iter(data.train_dataloader()))["n_tokens"] > 0
        data.load_state_dict(data.state_dict())
    else:
        with pytest.raises(CheckpointError, match="dataset"):
            data.load_state_dict(state)


def test_a_batch_for_the_model_has_no_position_and_moves_nothing_outside_of_training(tmp_path, tiny_llama) -> None:
    data = chat_data(tmp_path, tiny_llama)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch.keys() == {"input_ids", "labels", "position_ids", "tokens", "n_tokens", "step_labels"}
    assert data.state_dict()["position"] == start_of_epoch(0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("max_length", 1),
        ("shuffle_buffer", 0),
        ("num_workers", -1),
        ("validation_rows", 0),
        ("max_malformed", 1.5),
        ("max_malformed", -0.1),
        ("max_malformed", float("nan")),
    ],
)
def test_a_bad_number_is_refused_by_name(field, value) -> None:
    with pytest.raises(ValueError, match=rf"data\.{field} must be .*, got {re.escape(str(value))}"):
        ChatData(ChatDataset(), "unused", **{field: value})


def test_check_covers_the_validation_set_too(tmp_path) -> None:
    dataset = ChatDataset(write(tmp_path / "rows.jsonl", [row(0)]))
    with pytest.raises(DataError, match=r"no such file: .*gone.jsonl"):
        ChatData(dataset, "unused", validation=ChatDataset(str(tmp_path / "gone.jsonl"))).check()
