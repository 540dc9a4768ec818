"""The training sets. Each is one small class that says how a row of the set becomes a conversation.

dataset = SlimOrca()
for raw in dataset.load():
    messages = dataset.parse(raw)  # [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import datasets

from cera.data.chat import Message, check_messages
from cera.data.rows import DataError, Rows, describe, shorten

EARLIER_NAMES = {"GSMSymbolic": "ReasoningGymWordProblems", "GSM8K": "GSM8KSolutions"}
"""Names that checkpoints of earlier versions have for classes of this module, and the names of today."""


@dataclass
class ChatDataset(Rows):
    """Rows that hold one conversation each: ``messages`` (role, content) or ``conversations`` (from, value).

    Use it for files of your own; the subclasses are published sets.

    Args:
        rows: First row, and the one after the last, to use a part of the set.
        turns: ``"first"`` keeps only the first user turn of a conversation and the answer to it.
    """

    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("messages",), ("conversations",))
    rows: tuple[int, int] | None = None
    turns: Literal["all", "first"] = "all"

    @property
    def first_row(self) -> int:
        """The number in the set of the first row of ``load``."""
        return 0 if self.rows is None else self.rows[0]

    def check(self) -> None:
        """Check what can be checked without the network; see ``Rows.check``."""
        self._check_rows()
        super().check()

    def _check_rows(self) -> None:
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1]:
            raise DataError(
                f"{type(self).__name__}.rows must be the first row and the one after the last, 0 <= first < end, "
                f"got {list(self.rows)}."
            )

    def load(self, streaming: bool | None = None) -> datasets.Dataset | datasets.IterableDataset:
        """Return the rows in order, as ``Rows.load`` does."""
        return self._part(super().load(streaming))

    def _part(self, loaded: Any) -> Any:
        """Return the ``rows`` of what was loaded."""
        if self.rows is None:
            return loaded
        start, end = self.rows
        if not isinstance(loaded, datasets.Dataset):
            return loaded.skip(start).take(end - start)
        if end > len(loaded):
            raise DataError(f"{type(self).__name__}.rows={[start, end]}: the set has {len(loaded)} rows.")
        return loaded.select(range(start, end))

    def messages(self, row: dict[str, Any]) -> list[Message] | None:
        """Return one row as messages, or ``None`` to filter it out.

        Raises:
            ValueError: The row is malformed.
        """
        if row.get("messages") is not None:
            return [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
        return sharegpt(row["conversations"])

    def parse(self, raw: dict[str, Any]) -> list[Message] | None:
        """Return a raw row of ``load`` as checked messages, or ``None`` if it is filtered out.

        Raises:
            ValueError: The row is malformed; the message says in which way.
        """
        row = self.row(raw)
        if row is None:
            return None
        try:
            messages = self.messages(row)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"unexpected structure: {shorten(repr(error))}") from error
        if messages is None:
            return None
        return check_messages(first_turns(messages) if self.turns == "first" else messages)


def first_turns(messages: list[Message]) -> list[Message]:
    """Return the first user turn and the first answer after it, as far as they are there."""
    roles = [message.get("role") for message in messages]
    start = roles.index("user") if "user" in roles else len(roles)
    answer = start + roles[start:].index("assistant") if "assistant" in roles[start:] else len(roles)
    return messages[start : start + 1] + messages[answer : answer + 1]


def sharegpt(turns: list[dict[str, Any]]) -> list[Message]:
    """Return ShareGPT's ``from``/``value`` turns as messages.

    Raises:
        ValueError: A speaker is unknown.
    """
    roles = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
    unknown = {turn["from"] for turn in turns} - roles.keys()
    if unknown:
        raise ValueError(f"unknown speaker {', '.join(map(describe, unknown))}; expected one of {', '.join(roles)}")
    return [{"role": roles[turn["from"]], "content": turn["value"]} for turn in turns]


def question_and_answer(question: str, answer: str) -> list[Message]:
    """Return the conversation of one question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@dataclass
class SlimOrca(ChatDataset):
    """Open-Orca/SlimOrca (the paper's general instruction set): ``conversations`` with an optional system turn."""

    columns: ClassVar = (("conversations",),)
    path: str | None = "Open-Orca/SlimOrca"
    streaming: bool = True


@dataclass
class MathInstruct(ChatDataset):
    """TIGER-Lab/MathInstruct: ``instruction``, ``output``, and the ``source``, which names the kind of solution.

    Args:
        solutions: ``"cot"`` keeps solutions in prose (chain of thought), ``"pot"`` Python programs, ``"all"`` both.
    """

    columns: ClassVar = (("source", "instruction", "output"),)
    path: str | None = "TIGER-Lab/MathInstruct"
    streaming: bool = True
    solutions: Literal["all", "cot", "pot"] = "all"

    def messages(self, row: dict[str, Any]) -> list[Message] | None:
        kind = "cot" if "/CoT/" in row["source"] else "pot" if "/PoT/" in row["source"] else None
        if kind is None:
            raise ValueError(f"source {describe(row['source'])} names neither CoT nor PoT")
        if self.solutions not in ("all", kind):
            return None
        return question_and_answer(row["instruction"], row["output"])


@dataclass
class MetaMathQA(ChatDataset):
    """meta-math/MetaMathQA: ``query`` and ``response`` (Yu et al. 2023, arXiv 2309.12284).

    Args:
        most_characters: Rows with more characters, with one between query and response, are left out; ``None`` keeps
            all. PEFT's benchmark leaves out those with more than 1,300.
    """

    columns: ClassVar = (("query", "response"),)
    path: str | None = "meta-math/MetaMathQA"
    most_characters: int | None = None

    def messages(self, row: dict[str, Any]) -> list[Message] | None:
        query, response = row["query"], row["response"]
        if self.most_characters is not None and len(f"{query} {response}") > self.most_characters:
            return None
        return question_and_answer(query, response)


@dataclass
class GSM8KSolutions(ChatDataset):
    """openai/gsm8k for training: ``question``, and the steps of its ``answer``, which end in ``#### N``.

    Source: Cobbe et al. 2021. The benchmark on the test split is ``cera.evaluation.tasks.GSM8K``.
    """

    columns: ClassVar = (("question", "answer"),)
    path: str | None = "openai/gsm8k"
    name: str | None = "main"

    def messages(self, row: dict[str, Any]) -> list[Message]:
        return question_and_answer(row["question"], row["answer"])
