"""The training sets: where each lies, and how a row of it becomes messages. One small class a format."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import datasets

from cera.data.chat import Message, check_messages

LOADERS = {".jsonl": "text", ".json": "json", ".parquet": "parquet"}
"""File ending -> the loader of ``datasets``. JSON lines are read as text and parsed one by one, so that one broken
line is one malformed row and not the end of the file."""

datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it asks the hub, and waits for it, even for local files


class DataError(ValueError):
    """A dataset is missing, empty, or not of the form its class expects; the message says what was found."""


@dataclass
class ChatDataset:
    """Rows with a conversation each: ``messages`` (role, content) or ``conversations`` (from, value).

    This is the format for any file of one's own; the subclasses are the named sets.

    Args:
        data_files: Local file or files (.jsonl, .json, .parquet); ``None`` takes the set from the hub.
        path: Hub id, for sets that have one.
        name: Its configuration on the hub.
        split: Which split of the hub's set.
        streaming: Read rows as they come, without downloading or indexing the whole set first.
    """

    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("messages",), ("conversations",))
    """Alternatives of the columns a row must have."""

    data_files: str | list[str] | None = None
    path: str | None = None
    name: str | None = None
    split: str = "train"
    streaming: bool = False

    def messages(self, row: dict[str, Any]) -> list[Message] | None:
        """One row as messages; ``None`` if the row is filtered out. Raises ``ValueError`` for a malformed row."""
        if row.get("messages") is not None:
            return [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
        return sharegpt(row["conversations"])

    def files(self) -> list[str]:
        """The local files, as a list; empty if the set is on the hub."""
        return [self.data_files] if isinstance(self.data_files, str) else list(self.data_files or [])

    def check(self) -> None:
        """Raise ``DataError`` for what can be told without the network: missing or empty files, wrong columns."""
        if not self.files() and self.path is None:
            raise DataError(f"{type(self).__name__} needs data_files (a .jsonl, .json or .parquet file) or a hub path.")
        for file in map(Path, self.files()):
            if not file.is_file():
                raise DataError(f"data_files: no such file: {file}")
            if file.stat().st_size == 0:
                raise DataError(f"data_files: {file} is empty; expected rows with {self._expected()}.")
            if file.suffix not in LOADERS:
                raise DataError(f"data_files: {file} ends in {file.suffix!r}; expected one of {', '.join(LOADERS)}.")
        if len({Path(file).suffix for file in self.files()}) > 1:
            raise DataError(f"data_files: files of one kind are expected, got {', '.join(self.files())}.")
        if self.files():
            try:
                first = next(iter(self.load(streaming=True)), None)
            except Exception as error:  # pyarrow and ujson raise many kinds, without the file's name
                raise DataError(f"data_files: {', '.join(self.files())} cannot be read: {error}") from error
            self._check_columns(first)

    def load(self, streaming: bool | None = None) -> datasets.Dataset | datasets.IterableDataset:
        """The rows, in order. A row of a .jsonl file is ``{"text": line}`` here; ``parse`` makes it a row."""
        streaming = self.streaming if streaming is None else streaming
        files = self.files()
        if files:
            loader = LOADERS[Path(files[0]).suffix]
            options = {"encoding": "utf-8-sig", "encoding_errors": "replace"} if loader == "text" else {}
            return datasets.load_dataset(loader, data_files=files, split="train", streaming=streaming, **options)
        return datasets.load_dataset(self.path, self.name, split=self.split, streaming=streaming)

    def parse(self, raw: dict[str, Any]) -> list[Message] | None:
        """A raw row of ``load`` as checked messages; ``None`` if filtered out.

        Raises:
            ValueError: The row is malformed; the message says how.
        """
        if raw.keys() == {"text"} and not raw["text"].strip():
            return None  # a blank line
        row = self._row(raw)
        missing = self._missing(row)
        if missing:
            raise ValueError(f"missing {missing}; it has {', '.join(row) or 'nothing'}")
        try:
            messages = self.messages(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"unexpected structure: {error!r}") from error
        return None if messages is None else check_messages(messages)

    def _row(self, raw: dict[str, Any]) -> dict[str, Any]:
        files = self.files()
        if not files or LOADERS[Path(files[0]).suffix] != "text":
            return raw
        if "\ufffd" in raw["text"]:
            raise ValueError("not UTF-8")
        try:
            row = json.loads(raw["text"])
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"a JSON {type(row).__name__}, not an object")
        return row

    def _check_columns(self, raw: dict[str, Any] | None) -> None:
        if raw is None:
            raise DataError(f"data_files: {', '.join(self.files())} has no rows; expected {self._expected()}.")
        try:
            row = self._row(raw)
        except ValueError:
            return  # a malformed first row is counted like any other
        if self._missing(row):
            raise DataError(
                f"data_files: {', '.join(self.files())} has the columns {', '.join(row)}; "
                f"{type(self).__name__} expects {self._expected()}."
            )

    def _missing(self, row: dict[str, Any]) -> str:
        if any(all(row.get(column) is not None for column in columns) for columns in self.columns):
            return ""
        return self._expected()

    def _expected(self) -> str:
        return " or ".join(" and ".join(columns) for columns in self.columns)


def sharegpt(turns: list[dict[str, Any]]) -> list[Message]:
    """ShareGPT's ``from``/``value`` turns as messages."""
    roles = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
    unknown = {turn["from"] for turn in turns} - roles.keys()
    if unknown:
        raise ValueError(f"unknown speaker {', '.join(map(repr, unknown))}; expected one of {', '.join(roles)}")
    return [{"role": roles[turn["from"]], "content": turn["value"]} for turn in turns]


def question_and_answer(question: str, answer: str) -> list[Message]:
    """A conversation of one question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@dataclass
class SlimOrca(ChatDataset):
    """Open-Orca/SlimOrca (the paper's general instruction set): ``conversations`` with an optional system turn."""

    columns: ClassVar = (("conversations",),)
    path: str | None = "Open-Orca/SlimOrca"
    streaming: bool = True


@dataclass
class MathInstruct(ChatDataset):
    """TIGER-Lab/MathInstruct: ``instruction``, ``output``, and a ``source`` that says which kind of solution it is.

    Args:
        solutions: ``"cot"`` keeps the prose solutions (chain of thought), ``"pot"`` the Python programs.
    """

    columns: ClassVar = (("source", "instruction", "output"),)
    path: str | None = "TIGER-Lab/MathInstruct"
    streaming: bool = True
    solutions: Literal["all", "cot", "pot"] = "all"

    def messages(self, row: dict[str, Any]) -> list[Message] | None:
        kind = "cot" if "/CoT/" in row["source"] else "pot" if "/PoT/" in row["source"] else None
        if kind is None:
            raise ValueError(f"source {row['source']!r} names neither CoT nor PoT")
        if self.solutions not in ("all", kind):
            return None
        return question_and_answer(row["instruction"], row["output"])


@dataclass
class GSM8K(ChatDataset):
    """openai/gsm8k: ``question``, and an ``answer`` of worked steps that ends in ``#### N`` (Cobbe et al. 2021)."""

    columns: ClassVar = (("question", "answer"),)
    path: str | None = "openai/gsm8k"
    name: str | None = "main"

    def messages(self, row: dict[str, Any]) -> list[Message]:
        return question_and_answer(row["question"], row["answer"])


@dataclass
class GSMSymbolic(ChatDataset):
    """Word problems after GSM8K's templates with fresh names and numbers, made on the spot by ``reasoning-gym``.

    Some of the generator's worked solutions end in another number than its answer; those are left out, and so are
    repeated questions, so that a validation split shares no question with the training split.

    Args:
        size: How many problems.
        problem_seed: Seed of the generator, apart from the run's seed: the problems stay the same across runs.
    """

    columns: ClassVar = (("question", "answer"),)
    size: int = 4000
    problem_seed: int = 0

    def check(self) -> None:
        if self.size <= 0:
            raise DataError(f"GSMSymbolic.size must be a positive integer, got {self.size}.")
        if self.data_files is not None:
            raise DataError("GSMSymbolic makes its problems itself: it takes no data_files. For a file, use GSM8K.")

    def load(self, streaming: bool | None = None) -> datasets.Dataset:
        return datasets.Dataset.from_list(list(self._problems()))

    def _problems(self) -> Iterator[dict[str, str]]:
        import reasoning_gym

        problems = reasoning_gym.create_dataset("gsm_symbolic", size=4 * self.size, seed=self.problem_seed)
        questions: set[str] = set()
        for problem in problems:
            question, solution = problem["question"], problem["metadata"]["answer_cot"]
            if question in questions or not solution.rstrip().endswith(f"#### {problem['answer']}"):
                continue
            questions.add(question)
            yield {"question": question, "answer": solution}
            if len(questions) == self.size:
                return
        raise DataError(f"GSMSymbolic.size={self.size}: the generator has only {len(questions)} different problems.")

    def messages(self, row: dict[str, Any]) -> list[Message]:
        return question_and_answer(row["question"], row["answer"])
