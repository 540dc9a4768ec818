"""From a question to the text that a model goes on from: instruction, examples, and the chat template or plain text."""

from dataclasses import dataclass, field
from typing import Any, Literal

from cera.data.chat import Message, render


@dataclass(frozen=True)
class Example:
    """A worked example, shown before the question."""

    question: str
    answer: str


@dataclass(frozen=True)
class Prompt:
    """How a question is asked.

    Args:
        style: ``"chat"`` takes the tokenizer's chat template, or for a tokenizer without one the fallback that
            training uses: an adapter is asked in the form that it was trained in. ``"plain"`` writes
            ``Question: ...`` and ``Answer: ...`` in plain text, for base models; give it a stop string.
        system: The system turn (a first paragraph, in plain text).
        question: What the user turn says; ``{question}`` stands for the problem's.
        examples: Worked examples, as earlier turns, each asked as ``question`` has it.
        shots: How many of the examples are shown, the first ones; ``None`` shows all.

    Raises:
        ValueError: A setting cannot be; the message names it.
    """

    style: Literal["chat", "plain"] = "chat"
    system: str | None = None
    question: str = "{question}"
    examples: list[Example] = field(default_factory=list)
    shots: int | None = None

    def __post_init__(self) -> None:
        if self.question.count("{question}") != 1:
            raise ValueError(f"prompt.question must have {{question}} in it once, got {self.question!r}.")
        if self.shots is not None and not 0 <= self.shots <= len(self.examples):
            raise ValueError(f"prompt.shots must be between 0 and the {len(self.examples)} examples, got {self.shots}.")

    def messages(self, question: str) -> list[Message]:
        """The conversation that ends in ``question``."""
        turns = [{"role": "system", "content": self.system}] if self.system else []
        for example in self.examples[: self.shots]:
            turns += [self._ask(example.question), {"role": "assistant", "content": example.answer}]
        return [*turns, self._ask(question)]

    def _ask(self, question: str) -> Message:
        return {"role": "user", "content": self.question.replace("{question}", question)}

    def render(self, question: str, tokenizer: Any) -> str:
        """The text that the model goes on from. Raises ``ValueError`` if the chat template refuses it."""
        messages = self.messages(question)
        if self.style == "chat":
            return render(tokenizer, messages, add_generation_prompt=True)
        written = {"system": "{}", "user": "Question: {}", "assistant": "Answer: {}"}
        text = "\n\n".join(written[turn["role"]].format(turn["content"]) for turn in messages)
        return f"{tokenizer.bos_token or ''}{text}\n\nAnswer:"
