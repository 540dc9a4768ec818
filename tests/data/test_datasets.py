"""From the rows of each format to messages, and errors that say what was found."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from cera.data import ChatDataset, DataError, GSM8KSolutions, MathInstruct, ReasoningGymWordProblems, SlimOrca

QA = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
SHAREGPT = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]


@pytest.fixture(autouse=True)
def _by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` caches out of the user's cache, and its count of uses off the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)


def write(path: Path, rows: list[Any]) -> str:
    """``rows`` as a file of the kind its ending says."""
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def conversations(dataset: ChatDataset) -> list[Any]:
    """All rows as messages."""
    return [dataset.parse(raw) for raw in dataset.load()]


# The named sets


@pytest.mark.parametrize("system", [None, "You are an assistant."])
def test_slim_orca(system) -> None:
    first = [] if system is None else [{"from": "system", "value": system, "weight": None}]
    expected = QA if system is None else [{"role": "system", "content": system}, *QA]
    assert SlimOrca().parse({"conversations": [*first, *SHAREGPT]}) == expected


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown speaker 'alien'"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "no assistant turn"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": " "}]}, "turn is empty"),
        ({"conversations": [{"from": "human", "value": 3}, {"from": "gpt", "value": "x"}]}, "user turn is int"),
        ({"conversations": []}, "empty"),
        ({"conversations": None}, "missing conversations; it has conversations"),
        ({"text": "x"}, "missing conversations; it has text"),
        ({}, "missing conversations; it has nothing"),
        ({"conversations": [{"from": "human"}]}, "unexpected structure"),
        ({"conversations": ["human: x"]}, "unexpected structure"),
        ({"conversations": 5}, "unexpected structure"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "unexpected structure"),
    ],
)
def test_a_malformed_row_is_a_value_error_with_the_reason(row, complaint) -> None:
    with pytest.raises(ValueError, match=complaint):
        SlimOrca().parse(row)


@pytest.mark.parametrize(("solutions", "remaining"), [("all", ["c", "p"]), ("cot", ["c"]), ("pot", ["p"])])
def test_math_instruct_keeps_the_solutions_asked_for(solutions, remaining) -> None:
    rows = [
        {"source": "data/CoT/gsm_train.json", "instruction": "q", "output": "c"},
        {"source": "data/PoT/mathqa.json", "instruction": "q", "output": "p"},
    ]
    parsed = [MathInstruct(solutions=solutions).parse(row) for row in rows]
    assert [messages[1]["content"] for messages in parsed if messages is not None] == remaining
    assert [messages[0] for messages in parsed if messages is not None] == [{"role": "user", "content": "q"}] * len(
        remaining
    )


@pytest.mark.parametrize("source", ["data/other.json", 3])
def test_math_instruct_refuses_a_source_of_neither_kind(source) -> None:
    with pytest.raises(ValueError, match=r"neither CoT nor PoT|unexpected structure"):
        MathInstruct(solutions="cot").parse({"source": source, "instruction": "q", "output": "o"})


def test_gsm8k_row() -> None:
    assert GSM8KSolutions().parse({"question": "2 + 2?", "answer": "4"}) == QA


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_real_gsm8k_files_parse(gsm8k: Path, split: str) -> None:
    dataset = GSM8KSolutions(str(gsm8k / f"{split}.jsonl"), streaming=True)
    dataset.check()
    parsed = [dataset.parse(raw) for raw in dataset.load().take(200)]
    assert len(parsed) == 200
    assert all([message["role"] for message in messages] == ["user", "assistant"] for messages in parsed)
    assert all(re.search(r"#### -?[\d,.]+$", messages[1]["content"]) for messages in parsed)
    assert len({messages[0]["content"] for messages in parsed}) == 200


@pytest.mark.parametrize(("dataset", "path"), [(SlimOrca, "Open-Orca/SlimOrca"), (GSM8KSolutions, "openai/gsm8k")])
def test_a_named_set_without_files_is_on_the_hub(dataset, path) -> None:
    assert dataset().path == path
    assert dataset().files() == []
    dataset().check()  # nothing can be told without the network


# One's own files


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("row", [{"messages": QA}, {"conversations": SHAREGPT}], ids=["messages", "conversations"])
def test_chat_dataset_reads_both_columns_from_every_kind_of_file(tmp_path, row, ending, streaming) -> None:
    dataset = ChatDataset(write(tmp_path / f"rows{ending}", [row, row]), streaming=streaming)
    dataset.check()
    assert isinstance(dataset.load(), datasets.IterableDataset if streaming else datasets.Dataset)
    assert conversations(dataset) == [QA, QA]


def test_other_keys_of_a_turn_are_left_out() -> None:
    row = {"messages": [{**QA[0], "weight": 0}, {**QA[1], "weight": 1}]}
    assert ChatDataset("rows.parquet").parse(row) == QA


def test_several_files_are_read_in_order(tmp_path) -> None:
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(4)]
    files = [write(tmp_path / "b.jsonl", rows[:2]), write(tmp_path / "a.jsonl", rows[2:])]
    assert [m[1]["content"] for m in conversations(GSM8KSolutions(files))] == ["a0", "a1", "a2", "a3"]


def test_a_json_line_is_one_row_whatever_separators_its_text_holds(tmp_path) -> None:
    answer = "one\u2028two\x85three\x0bfour\nfive\r\nsix"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": answer}, ensure_ascii=False) + "\n")
    [messages] = conversations(GSM8KSolutions(str(path)))
    assert messages[1]["content"] == answer


@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_json_line_is_one_malformed_row(tmp_path, streaming) -> None:
    path = Path(write(tmp_path / "rows.jsonl", [{"question": "q0", "answer": "a0"}]))
    path.write_text(path.read_text() + '{"question": "q1", "ans\n["a", "list"]\n{"question": "q2", "answer": "a2"}\n')
    dataset = GSM8KSolutions(str(path), streaming=streaming)
    dataset.check()
    first, broken, listed, last = dataset.load()
    assert [dataset.parse(raw)[1]["content"] for raw in (first, last)] == ["a0", "a2"]
    with pytest.raises(ValueError, match="not JSON"):
        dataset.parse(broken)
    with pytest.raises(ValueError, match="a JSON list, not an object"):
        dataset.parse(listed)


def test_a_line_that_is_not_utf8_does_not_end_the_file(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"question": "q0", "answer": "a0"}\n{"question": "caf\xe9", "answer": "a1"}\n')
    dataset = GSM8KSolutions(str(path), streaming=True)
    dataset.check()
    rows = list(dataset.load())
    assert len(rows) == 2
    assert dataset.parse(rows[0])[1]["content"] == "a0"


def test_a_broken_first_line_is_left_to_be_counted_as_malformed(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": \n{"question": "q", "answer": "a"}\n')
    GSM8KSolutions(str(path)).check()


def test_a_deeply_nested_line_is_one_malformed_row(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"messages": QA})
    nested = json.dumps({"messages": "@"}).replace('"@"', "[" * 900 + "]" * 900)
    role = json.dumps({"messages": [{"role": "@", "content": "x"}]}).replace('"@"', "[" * 900 + "]" * 900)
    path.write_text("\n".join(["[" * 200_000, '{"a":' * 200_000, nested, role, good]) + "\n")
    dataset = ChatDataset(str(path))
    dataset.check()
    *bad, last = dataset.load()
    assert dataset.parse(last) == QA
    for raw, reason in zip(bad, ("nested too deeply",) * 2 + ("unexpected structure", "unknown role"), strict=True):
        with pytest.raises(ValueError, match=reason) as refusal:
            dataset.parse(raw)
        assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    "row",
    [{"messages": [{"role": "x" * 10**6, "content": "y"}]}, {"c" * 10**6: 1}, {f"column {i}": 1 for i in range(10**5)}],
    ids=["role", "column", "columns"],
)
def test_a_message_about_a_row_is_short_whatever_its_size(row) -> None:
    with pytest.raises(ValueError, match=r"unknown role|missing messages") as refusal:
        ChatDataset("rows.parquet").parse(row)
    assert len(str(refusal.value)) < 500


# A path is a path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("run [v2]/chats.jsonl", "run v/chats.jsonl"),
        ("part?.jsonl", "part1.jsonl"),
        ("all*.jsonl", "all-old.jsonl"),
        ("**/chats.parquet", "other/chats.parquet"),
        ("chats[!a].json", "chatsb.json"),
        ("a::b/chats.jsonl", "b/chats.jsonl"),
        ("https:/x/chats.jsonl", "x/chats.jsonl"),
        ("{a,b}#c%20.jsonl", "a.jsonl"),
        ("train@1=~.jsonl", "train.jsonl"),
        ("~/chats.jsonl", "chats.jsonl"),
        (".hidden/chats.jsonl", "hidden/chats.jsonl"),
    ],
)
def test_only_the_file_of_a_path_is_read_whatever_its_characters(
    tmp_path, monkeypatch, name, beside, streaming
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, text in ((tmp_path / name, "wanted"), (tmp_path / beside, "other")):
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, [{"question": text, "answer": "a"}] * 3)
    for path in (str(tmp_path / name), name if name[0] != "~" else f"./{name}"):
        dataset = GSM8KSolutions(path, streaming=streaming)
        dataset.check()
        assert [messages[0]["content"] for messages in conversations(dataset)] == ["wanted"] * 3
    write(tmp_path / name, [{"question": "changed", "answer": "a"}] * 4)
    assert [messages[0]["content"] for messages in conversations(dataset)] == ["changed"] * 4


def test_a_leading_tilde_is_the_home_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "rows.jsonl", [{"messages": QA}])
    dataset = ChatDataset("~/rows.jsonl")
    dataset.check()
    assert dataset.files() == [str(tmp_path / "rows.jsonl")]
    assert conversations(dataset) == [QA]


# Errors before anything is read


def test_neither_files_nor_hub_path(tmp_path) -> None:
    with pytest.raises(DataError, match=r"ChatDataset needs data_files .* or a hub path"):
        ChatDataset().check()


def test_missing_file_is_named(tmp_path) -> None:
    here, gone = write(tmp_path / "here.jsonl", [{"messages": QA}]), tmp_path / "gone.jsonl"
    with pytest.raises(DataError, match=f"no such file: {re.escape(str(gone))}"):
        ChatDataset([here, str(gone)]).check()


def test_empty_file_says_what_was_expected(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.touch()
    with pytest.raises(DataError, match=r"rows.jsonl is empty; expected rows with source and instruction and output"):
        MathInstruct(str(path)).check()


def test_unknown_ending_says_which_are_known(tmp_path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\nq,a\n")
    with pytest.raises(DataError, match=r"rows.csv ends in '.csv'; expected one of .jsonl, .json, .parquet"):
        GSM8KSolutions(str(path)).check()


def test_files_of_two_kinds_are_refused(tmp_path) -> None:
    files = [write(tmp_path / "a.jsonl", [{"messages": QA}]), write(tmp_path / "b.parquet", [{"messages": QA}])]
    with pytest.raises(DataError, match="files of one kind"):
        ChatDataset(files).check()


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_wrong_columns_say_what_was_found_and_what_is_expected(tmp_path, ending) -> None:
    path = write(tmp_path / f"rows{ending}", [{"prompt": "q", "completion": "a"}])
    with pytest.raises(
        DataError, match=r"has the columns prompt, completion; GSM8KSolutions expects question and answer"
    ):
        GSM8KSolutions(path).check()
    with pytest.raises(DataError, match=r"has the columns prompt, completion; ChatDataset expects messages or conv"):
        ChatDataset(path).check()


def test_a_parquet_file_without_rows_is_refused(tmp_path) -> None:
    path = tmp_path / "rows.parquet"
    features = datasets.Features({"question": datasets.Value("string"), "answer": datasets.Value("string")})
    datasets.Dataset.from_dict({"question": [], "answer": []}, features=features).to_parquet(path)
    with pytest.raises(DataError, match=r"rows.parquet has no rows"):
        GSM8KSolutions(str(path)).check()


# Problems made on the spot


@pytest.fixture(scope="module")
def problems() -> list[dict[str, str]]:
    return ReasoningGymWordProblems(size=120).load().to_list()


def test_gsm_symbolic_makes_as_many_different_problems_as_asked(problems) -> None:
    assert len(problems) == 120
    assert len({row["question"] for row in problems}) == 120


def test_every_symbolic_solution_ends_in_its_answer(problems) -> None:
    assert all(re.search(r"^#### -?\d[\d,.]*$", row["answer"].rstrip().splitlines()[-1]) for row in problems)
    parsed = [ReasoningGymWordProblems(size=120).parse(row) for row in problems]
    assert [messages[1]["content"] for messages in parsed] == [row["answer"] for row in problems]


def test_gsm_symbolic_is_a_function_of_its_seed(problems) -> None:
    assert ReasoningGymWordProblems(size=30).load().to_list() == problems[:30]
    assert ReasoningGymWordProblems(size=30, skip=90).load().to_list() == problems[90:]
    assert ReasoningGymWordProblems(size=30, problem_seed=1).load().to_list() != problems[:30]


@pytest.mark.parametrize("size", [0, -5])
def test_word_problems_refuse_a_bad_size(size) -> None:
    with pytest.raises(DataError, match=f"ReasoningGymWordProblems.size must be a positive integer, got {size}"):
        ReasoningGymWordProblems(size=size).check()


def test_word_problems_refuse_files(tmp_path) -> None:
    with pytest.raises(DataError, match="takes no data_files"):
        ReasoningGymWordProblems(data_files=write(tmp_path / "rows.jsonl", [{"question": "q", "answer": "a"}])).check()
