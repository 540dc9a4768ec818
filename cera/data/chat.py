"""Renders conversations by the tokenizer's chat template, and labels the tokens of the answers."""

from dataclasses import dataclass
from typing import Any, Literal

import jinja2

from cera.data.rows import describe

Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": ...}``, as chat templates take it."""

IGNORE = -100
"""Label of a token without loss: the value that ``torch.nn.functional.cross_entropy`` ignores by default."""

FALLBACK_TEMPLATE = """\
{{ bos_token or '' }}
{%- for message in messages -%}
{{ '### ' + message['role'].capitalize() + ':\\n' + message['content'] | trim }}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif -%}"""
"""Template for base models without one, such as Llama-3-8B: BOS, headings in plain text, EOS after each answer."""


class TemplateError(ValueError):
    """The chat template does not allow answers to be told from prompts."""


@dataclass(frozen=True)
class Document:
    """One tokenized conversation.

    Attributes:
        input_ids: Token ids, length n.
        labels: The same ids where the token belongs to an answer, ``IGNORE`` elsewhere, length n.
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


def render(tokenizer: Any, messages: list[Message], add_generation_prompt: bool = False) -> str:
    """Return the conversation as the model reads it, rendered by the tokenizer's chat template.

    ``FALLBACK_TEMPLATE`` is set on a tokenizer without a template.

    Raises:
        ValueError: The template refuses the conversation.
    """
    _ensure_template(tokenizer)
    options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template refuses the conversation: {error}") from error


def _ensure_template(tokenizer: Any) -> None:
    if tokenizer.chat_template is None:
        tokenizer.chat_template = FALLBACK_TEMPLATE


class ChatEncoder:
    """Renders conversations by a tokenizer's chat template and labels the tokens of the answers.

    An answer spans from the end of the generation prompt to the end of the turn, including the end-of-turn token, so
    that the model learns to stop. The whole text is tokenized once and characters are mapped to tokens by offsets, so
    the end of a turn does not change how the text is split into tokens.

    Args:
        tokenizer: A fast transformers tokenizer. ``FALLBACK_TEMPLATE`` is set on it if it has no template.
        max_length: Maximum number of tokens of a document.
        overlong: ``"truncate"`` keeps the first ``max_length`` tokens of a longer document, ``"drop"`` leaves it out.
            A document without a labelled token is left out in any case.

    Raises:
        TemplateError: The tokenizer is not a fast one and gives no offsets.
    """

    def __init__(self, tokenizer: Any, max_length: int, overlong: Literal["truncate", "drop"] = "truncate") -> None:
        if not tokenizer.is_fast:
            raise TemplateError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed.")
        _ensure_template(tokenizer)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.overlong = overlong

    def render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        """Return the conversation as the model reads it; see ``render``."""
        return render(self.tokenizer, messages, add_generation_prompt)

    def answer_spans(self, messages: list[Message]) -> tuple[str, list[tuple[int, int]]]:
        """Return the rendered text, and the (start, end) of each answer in characters."""
        text = self.render(messages)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            turn = self.render(messages[: i + 1])
            if i == 0:  # without a turn before it, templates render no generation prompt
                prompt = turn[: turn.rindex(message["content"].strip())]
            else:
                prompt = self.render(messages[:i], add_generation_prompt=True)
            if not (turn.startswith(prompt) and text.startswith(turn.rstrip())):
                raise TemplateError(
                    "The chat template renders a turn differently once others follow it, so answers cannot be "
                    "found in the text. Use a template in which each turn is rendered by itself."
                )
            spans.append((len(prompt), len(turn.rstrip())))
        return text, spans

    def __call__(self, messages: list[Message]) -> Document | None:
        """Encode one conversation.

        Returns:
            The document; ``None`` if it is left out because of its length.
        """
        text, spans = self.answer_spans(messages)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if len(ids) > self.max_length and self.overlong == "drop":
            return None
        ids, offsets = ids[: self.max_length], offsets[: self.max_length]
        labels = [IGNORE] * len(ids)
        span = 0
        for i, (start, _) in enumerate(offsets):  # some tokenizers give tokens of spaces an empty span
            while span < len(spans) and start >= spans[span][1]:
                span += 1
            if span < len(spans) and start >= spans[span][0]:
                labels[i] = ids[i]
        labels[0] = IGNORE  # no token before it predicts it
        document = Document(ids, labels)
        return document if document.n_labels else None
