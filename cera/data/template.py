"""Renders conversations by a tokenizer's chat template, which is foreign code: it may fail, or never end.

Example:
    >>> render(tokenizer, [{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    '<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n'
"""

from typing import Any

import jinja2

from cera.data.bounded import time_limit, why_unbounded
from cera.data.rows import describe, shorten

Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": ...}``, as chat templates take it."""

FALLBACK_TEMPLATE = """\
{{ bos_token or '' }}
{%- for message in messages -%}
{{ '### ' + message['role'].capitalize() + ':\\n' + message['content'] | trim }}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif -%}"""
"""Template for base models without one, such as Llama-3-8B: BOS, headings in plain text, EOS after each answer."""

LONGEST = 2**20
"""Maximum number of characters that a template may render for four short turns."""

_QUESTION, _ANSWER = {"role": "user", "content": "What is 1 + 2?"}, {"role": "assistant", "content": "It is 3."}
_TRIALS: list[list[Message]] = [
    [_QUESTION],
    [_QUESTION, _ANSWER, _QUESTION, _ANSWER],
    [{"role": "system", "content": "Be brief."}, _QUESTION, _ANSWER, _QUESTION],
]

_WITHOUT_SPACE = dict.fromkeys(code for code in range(0x3001) if chr(code).isspace())

_tried: set[str] = set()


class TemplateError(ValueError):
    """The chat template does not allow answers to be told from prompts."""


class ConversationError(TemplateError):
    """The chat template cannot be used for this conversation; it may be for others."""


def prepare_template(tokenizer: Any) -> None:
    """Set ``FALLBACK_TEMPLATE`` on a tokenizer without a chat template; try a template of its own in a child process.

    Each template is tried once in a process.

    Raises:
        TemplateError: The template fails on every conversation, does not end, or renders too much; or
            ``FALLBACK_TEMPLATE`` has no token to end an answer with.
    """
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise TemplateError(
                "The tokenizer has neither a chat template nor an end-of-text token to end an answer with. Set "
                "eos_token in its tokenizer_config.json."
            )
        tokenizer.chat_template = FALLBACK_TEMPLATE
    key = repr((tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token))
    if key in _tried:
        return
    if reason := why_unbounded(lambda: _try(tokenizer)):
        raise TemplateError(f"The chat template {reason} for four short turns.")
    texts, errors = _try(tokenizer)
    if not texts:
        raise TemplateError(f"The chat template cannot be used: {errors[0]}.")
    if max(map(len, texts)) > LONGEST:
        raise TemplateError(f"The chat template renders more than {LONGEST} characters for four short turns.")
    _tried.add(key)


def _try(tokenizer: Any) -> tuple[list[str], list[TemplateError]]:
    texts, errors = [], []
    for messages in _TRIALS:
        try:
            texts += [render(tokenizer, messages), render(tokenizer, messages, add_generation_prompt=True)]
        except TemplateError as error:
            if isinstance(error.__cause__, MemoryError):
                raise error.__cause__ from error
            errors.append(error)
    return texts, errors


def render(tokenizer: Any, messages: list[Message], add_generation_prompt: bool = False) -> str:
    """Return the conversation as the model reads it, rendered by the tokenizer's chat template.

    Args:
        tokenizer: A transformers tokenizer with a chat template; see ``prepare_template``.
        messages: The conversation.
        add_generation_prompt: Whether to end with what precedes an answer.

    Raises:
        ConversationError: The template refuses the conversation, fails on it, or does not end.
    """
    try:
        with time_limit():
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except jinja2.TemplateSyntaxError as error:
        raise ConversationError(f"the chat template is not valid in line {error.lineno}: {_line(error)}") from error
    except jinja2.TemplateError as error:
        raise ConversationError(f"the chat template refuses the conversation: {_line(error)}") from error
    except Exception as error:  # the template is a program, which may raise anything
        reason = f"{type(error).__name__}: {_line(error)}"
        raise ConversationError(f"the chat template fails on the conversation: {reason}") from error


def _line(error: Exception) -> str:
    """Return an error's message as one short line."""
    return shorten(" ".join(str(error).split()))


def render_prompt(tokenizer: Any, messages: list[Message]) -> str:
    """Return the prompt for an answer to ``messages``, which is checked to hold all of them as what they are.

    Raises:
        TemplateError: The template fails, or leaves out or changes the content of a turn; or a content has a token that
            the template writes around turns, so that the model would take a part of it for another turn.
    """
    prepare_template(tokenizer)
    prompt = render(tokenizer, messages, add_generation_prompt=True)
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]
    compared = squeezed(prompt)
    for message in messages:
        turn = f"the {message['role']} turn {describe(message['content'])}"
        if squeezed(message["content"]) not in compared:
            raise ConversationError(f"the chat template leaves out or changes {turn}.")
        for token in added:
            if token in message["content"] and prompt.count(token) > sum(m["content"].count(token) for m in messages):
                raise ConversationError(
                    f"{turn} has {token!r} in it, which the model would take for the end of a turn."
                )
    return prompt


def squeezed(text: str) -> str:
    """Return ``text`` without white space, which templates may trim."""
    return text.translate(_WITHOUT_SPACE)
