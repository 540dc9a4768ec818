"""The texts of training and evaluation sets, for comparison by ``cera.evaluation.overlap``."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import datasets

from cera.data import ChatDataset, DataError, Rows
from cera.data.chat import Message
from cera.data.datasets import question_and_answer
from cera.evaluation.overlap import tokens
from cera.evaluation.tasks import Task

FIELDS = ("question", "answer", "both")


@dataclass
class QuestionsAndAnswers(ChatDataset):
    """A file of rows with one of the usual pairs of columns, or with conversations."""

    pairs: ClassVar = (
        ("question", "answer"),
        ("problem", "solution"),
        ("problem", "answer"),
        ("instruction", "output"),
    )
    columns: ClassVar = (*pairs, ("messages",), ("conversations",))

    def messages(self, row: dict[str, Any]) -> list[Message] | None:
        for question, answer in self.pairs:
            if row.get(question) is not None and row.get(answer) is not None:
                return question_and_answer(row[question], row[answer])
        return super().messages(row)


@dataclass
class Texts:
    """Reads the texts of a dataset once, row by row.

    Args:
        source: The dataset.
        part: One of ``FIELDS``: the question is the text of the user turns, the answer that of the assistant turns.

    Attributes:
        skipped: Number of malformed rows so far.
    """

    source: ChatDataset
    part: str
    skipped: int = field(default=0, init=False)

    def open(self) -> datasets.Dataset | datasets.IterableDataset:
        """Return the raw rows. Raises ``DataError`` if the hub does not have them or cannot be reached."""
        try:
            return self.source.load(streaming=True)
        except OSError as error:
            raise _unreachable(self.source, error) from error

    def read(self, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
        """Yield the text of each raw row; empty for a malformed or filtered row, so that row numbers stay right."""
        for raw in rows:
            try:
                messages = self.source.parse(raw) or []
            except ValueError:
                messages, self.skipped = [], self.skipped + 1
            yield text_of(messages, self.part)


def text_of(messages: Sequence[Message], part: str) -> str:
    """Return the text of a conversation to compare, without system turns, which many rows share."""
    roles = {"question": ("user",), "answer": ("assistant",), "both": ("user", "assistant")}[part]
    return "\n".join(message["content"] for message in messages if message["role"] in roles)


def evaluation_texts(source: ChatDataset | Task, part: str) -> list[str]:
    """Return the text of each row of an evaluation set, in order.

    Raises:
        DataError: A row is malformed, or there is none: an incomplete set would make the overlap look smaller.
    """
    try:
        if isinstance(source, Task):
            conversations = [question_and_answer(problem.question, problem.gold) for problem in source.problems()]
            texts = [text_of(messages, part) for messages in conversations]
        else:
            reader = Texts(source, part)
            texts = list(reader.read(source.load(streaming=True)))
            if reader.skipped:
                raise DataError(f"{name_of(source)}: {reader.skipped} of {len(texts)} rows are malformed.")
    except OSError as error:
        raise _unreachable(source, error) from error
    if not any(map(tokens, texts)):
        raise DataError(f"{name_of(source)} has no {part} with a word or number in it.")
    return texts


def name_of(source: Rows | Task) -> str:
    """Return the files, the hub path, or the class name of a set."""
    if not isinstance(source, Rows):
        return type(source).__name__
    return ", ".join(source.files()) or source.path or type(source).__name__


def _unreachable(source: Rows | Task, error: OSError) -> DataError:
    return DataError(f"{name_of(source)} cannot be read ({error}); --train-files and --test-files take local files.")
