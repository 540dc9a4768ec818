"""Turns a question into the prompt of a model: instruction, worked examples, and the chat template or plain text."""

from dataclasses import dataclass, field
from typing import Any, Literal

from cera.data.chat import Message, render_prompt


@dataclass(frozen=True)
class Example:
    """A worked example that precedes the question."""

    question: str
    answer: str


@dataclass(frozen=True)
class Prompt:
    """The form of a prompt.

    Args:
        style: ``"chat"`` uses the tokenizer's chat template, or for a tokenizer without one the fallback template of
            training, so that an adapter sees the form that it was trained in. ``"plain"`` writes ``Question: ...`` and
            ``Answer: ...`` in plain text, for base models; combine it with a stop string.
        system: The system turn (in plain text, a first paragraph).
        question: Text of the user turn; ``{question}`` stands for the problem's question.
        examples: Worked examples, as earlier turns; their questions are put into ``question``, too.
        shots: Number of examples to show, from the first on; ``None`` shows all.

    Raises:
        ValueError: A setting is out of its range; the message names it.
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
        """Return the conversation that ends in ``question``."""
        turns = [{"role": "system", "content": self.system}] if self.system else []
        for example in self.examples[: self.shots]:
            turns += [self._user_turn(example.question), {"role": "assistant", "content": example.answer}]
        return [*turns, self._user_turn(question)]

    def _user_turn(self, question: str) -> Message:
        return {"role": "user", "content": self.question.replace("{question}", question)}

    def render(self, question: str, tokenizer: Any) -> str:
        """Return the prompt as text; see ``render_prompt`` for what is refused."""
        messages = self.messages(question)
        if self.style == "chat":
            return render_prompt(tokenizer, messages)
        formats = {"system": "{}", "user": "Question: {}", "assistant": "Answer: {}"}
        text = "\n\n".join(formats[turn["role"]].format(turn["content"]) for turn in messages)
        return f"{tokenizer.bos_token or ''}{text}\n\nAnswer:"
