"""The training sets: how a row of each becomes messages. One small class a format."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import datasets

from cera.data.chat import Message, check_messages
from cera.data.rows import DataError, Rows


@dataclass
class ChatDataset(Rows):
    """Rows with a conversation each: ``messages`` (role, content) or ``conversations`` (from, value).

    This is the format for any file of one's own; the subclasses are the named sets.
    """

    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("messages",), ("conversations",))

    def messages(self, row: dict[str, Any]) -> list[Message] | None:
        """One row as messages; ``None`` if the row is filtered out. Raises ``ValueError`` for a malformed row."""
        if row.get("messages") is not None:
            return [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
        return sharegpt(row["conversations"])

    def parse(self, raw: dict[str, Any]) -> list[Message] | None:
        """A raw row of ``load`` as checked messages; ``None`` if filtered out.

        Raises:
            ValueError: The row is malformed; the message says how.
        """
        row = self.row(raw)
        if row is None:
            return None
        try:
            messages = self.messages(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"unexpected structure: {error!r}") from error
        return None if messages is None else check_messages(messages)


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
        skip: Leave out that many first: what follows the problems of a training set of that size shares no question
            with it, while another seed makes some of them again.
    """

    columns: ClassVar = (("question", "answer"),)
    size: int = 4000
    problem_seed: int = 0
    skip: int = 0

    def check(self) -> None:
        if self.size <= 0:
            raise DataError(f"GSMSymbolic.size must be a positive integer, got {self.size}.")
        if self.skip < 0:
            raise DataError(f"GSMSymbolic.skip must be zero or more, got {self.skip}.")
        if self.data_files is not None:
            raise DataError("GSMSymbolic makes its problems itself: it takes no data_files. For a file, use GSM8K.")

    def load(self, streaming: bool | None = None) -> datasets.Dataset:
        return datasets.Dataset.from_list(list(self._problems()))

    def _problems(self) -> Iterator[dict[str, str]]:
        import reasoning_gym

        end = self.skip + self.size
        problems = reasoning_gym.create_dataset("gsm_symbolic", size=4 * end, seed=self.problem_seed)
        questions: set[str] = set()
        for problem in problems:
            question, solution = problem["question"], problem["metadata"]["answer_cot"]
            if question in questions or not solution.rstrip().endswith(f"#### {problem['answer']}"):
                continue
            questions.add(question)
            if len(questions) > self.skip:
                yield {"question": question, "answer": solution}
            if len(questions) == end:
                return
        raise DataError(f"GSMSymbolic: {end} problems are asked for, and the generator has only {len(questions)}.")

    def messages(self, row: dict[str, Any]) -> list[Message]:
        return question_and_answer(row["question"], row["answer"])
