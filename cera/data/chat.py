"""Renders conversations by the tokenizer's chat template, and labels the tokens of the answers."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_only

from cera.data.layout import Layout, Span, Turn, lay_out
from cera.data.rows import describe
from cera.data.template import (
    FALLBACK_TEMPLATE,
    ConversationError,
    Message,
    TemplateError,
    prepare_template,
    render,
    render_prompt,
)
from cera.data.tokens import TokenSplitter

__all__ = [
    "FALLBACK_TEMPLATE",
    "IGNORE",
    "ChatEncoder",
    "Document",
    "Message",
    "TemplateError",
    "check_messages",
    "render_prompt",
]

log = logging.getLogger(__name__)

IGNORE = -100
"""Label of a token without loss: the value that ``torch.nn.functional.cross_entropy`` ignores by default."""

PROMPTS = 8
"""Number of answers of a conversation, beside its last, whose prompts are compared with what inference sees."""

LAYOUTS = 256
"""Maximum number of sequences of roles whose layout is kept."""


@dataclass(frozen=True)
class Document:
    """One tokenized conversation.

    Attributes:
        input_ids: Token ids, length n.
        labels: The same ids where the token has a loss, such as that of an answer, ``IGNORE`` elsewhere, length n.
    """

    input_ids: list[int]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def n_labels(self) -> int:
        """Number of tokens with loss."""
        return sum(label != IGNORE for label in self.labels)


def check_messages(messages: Any) -> list[Message]:
    """Return ``messages`` if they are a conversation with an answer to learn from.

    Raises:
        ValueError: They are not; the message says in which way.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("the conversation is empty")
    for message in messages:
        if message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"unknown role {describe(message.get('role'))}; expected system, user or assistant")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"the content of a {message['role']} turn is {type(message.get('content')).__name__}")
        message["content"].encode()  # a UnicodeEncodeError, which is a ValueError, for half a surrogate pair
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not answers:
        raise ValueError("no assistant turn")
    if not all(answer.strip() for answer in answers):
        raise ValueError("an assistant turn is empty")
    return messages


class ChatEncoder:
    """Renders conversations by a tokenizer's chat template and labels the tokens of the answers.

    An answer spans from the end of the generation prompt to the end of the turn, including the end-of-turn token, so
    that the model learns to stop. The text before it is the prompt that inference renders for it, and is split into the
    same tokens (``cera.data.tokens``).

    Args:
        tokenizer: A fast transformers tokenizer. ``FALLBACK_TEMPLATE`` is set on it if it has no template.
        max_length: Maximum number of tokens of a document.
        overlong: ``"truncate"`` keeps the first ``max_length`` tokens of a longer document, ``"drop"`` leaves it out.
            A document without a labelled token is left out in any case.
        loss_on: Which tokens are labelled: those of the answers, or all but the first of the document.
        loss_on_end: Whether the end of an answer, such as the end-of-turn token, is labelled.

    Raises:
        TemplateError: The tokenizer is not a fast one and gives no offsets; or its chat template cannot be used.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        overlong: Literal["truncate", "drop"] = "truncate",
        loss_on: Literal["answer", "all"] = "answer",
        loss_on_end: bool = True,
    ) -> None:
        if not tokenizer.is_fast:
            raise TemplateError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed.")
        prepare_template(tokenizer)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.overlong = overlong
        self.loss_on = loss_on
        self.loss_on_end = loss_on_end
        self._split = TokenSplitter(tokenizer)
        self._layouts: dict[tuple[str, ...], Layout] = {}
        self._reported: set[str] = set()

    def render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        """Return the conversation as the model reads it; see ``render``."""
        return render(self.tokenizer, messages, add_generation_prompt)

    def answer_spans(self, messages: list[Message]) -> tuple[str, list[Span]]:
        """Return the rendered text, and the (start, end) of each answer in characters.

        Raises:
            TemplateError: The template does not allow answers to be told from prompts.
        """
        text, turns = self._render_turns(messages)
        return text, [turn.answer for turn in turns if turn.answer]

    def _render_turns(self, messages: list[Message]) -> tuple[str, list[Turn]]:
        """Return the rendered text, and where the turns are in it."""
        text = self.render(messages)
        roles = tuple(message["role"] for message in messages)
        try:
            turns = self._layout(roles).turns(text, messages)
        except ConversationError:  # a template may write the date, and the day may have changed
            self._layouts.pop(roles, None)
            turns = self._layout(roles).turns(text, messages)
        self._report(messages, turns)
        self._check_prompts(text, messages, turns)
        return text, turns

    def _layout(self, roles: tuple[str, ...]) -> Layout:
        if roles not in self._layouts:
            if len(self._layouts) == LAYOUTS:
                self._layouts.clear()
            self._layouts[roles] = lay_out(self.tokenizer, roles)
        return self._layouts[roles]

    def _report(self, messages: list[Message], turns: list[Turn]) -> None:
        """Warn of roles whose turns the template leaves out, and of answers without an end, once for each."""
        shown = {turn.number for turn in turns}
        for number, message in enumerate(messages):
            if number not in shown:
                content = describe(message["content"])
                self._warn_once(
                    f"the chat template leaves out turns of the role {message['role']}", f"such as {content}"
                )
        if any(turn.answer and turn.answer[1] == turn.content[1] for turn in turns[-1:]):
            self._warn_once("the chat template writes nothing at the end of an answer", "so no model learns to stop")

    def _warn_once(self, fact: str, detail: str) -> None:
        if fact not in self._reported:
            self._reported.add(fact)
            rank_zero_only(log.warning)("%s, %s", fact, detail)

    def _check_prompts(self, text: str, messages: list[Message], turns: list[Turn]) -> None:
        """Check that what precedes an answer is what inference sees: the prompt that the template renders for it."""
        answers = [turn for turn in turns if turn.answer and turn.number > 0]
        if len(answers) > PROMPTS:
            answers = [*answers[:PROMPTS], answers[-1]]
        for turn in answers:
            assert turn.answer is not None
            prompt = self.render(messages[: turn.number], add_generation_prompt=True)
            if len(prompt) != turn.answer[0] or not text.startswith(prompt):
                answer = describe(messages[turn.number]["content"])
                raise ConversationError(
                    f"the chat template renders a prompt for the answer {answer} that is not before it."
                )

    def __call__(self, messages: list[Message]) -> Document | None:
        """Encode one conversation.

        Returns:
            The document; ``None`` if it is left out because of its length.
        """
        # each turn has a token or more, so that no more turns than these can be in the document
        text, turns = self._render_turns(messages[: self.max_length + 1])
        ids, spans = self._split(text, turns, self.max_length + 1)
        if len(ids) > self.max_length and self.overlong == "drop":
            return None
        labels = _labels(ids, spans, self._labelled(turns))
        document = Document(ids[: self.max_length], labels[: self.max_length])
        return document if document.n_labels else None

    def _labelled(self, turns: Sequence[Turn]) -> list[Span]:
        """Return the parts of the text whose tokens are labelled, in order."""
        parts = []
        position = 0
        for turn in turns:
            if turn.answer:
                start = position if self.loss_on == "all" else turn.answer[0]
                parts.append((start, turn.answer[1] if self.loss_on_end else turn.content[1]))
                position = turn.answer[1]
        if self.loss_on == "all":
            parts.append((position, sys.maxsize))
        return parts


def _labels(ids: list[int], spans: list[Span], parts: Sequence[Span]) -> list[int]:
    """Return the ids of tokens that spell something in ``parts`` of the text, and ``IGNORE`` for the others."""
    labels = [IGNORE] * len(ids)
    part = 0
    for i, (start, end) in enumerate(spans):
        while part < len(parts) and start >= parts[part][1]:
            part += 1
        if part < len(parts) and max(end, start + 1) > parts[part][0]:
            labels[i] = ids[i]
    labels[0] = IGNORE  # no token before it predicts it
    return labels
