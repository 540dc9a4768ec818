r"""Plain text in place of a chat template, such as ``"Question: {question}\nAnswer: {answer}"``.

The text becomes a chat template of the tokenizer, so that training, samples and evaluations render the same prompt, and
a saved adapter has it in its tokenizer.

Example:
    >>> set_text_template(tokenizer, "Question: {question}\nAnswer: {answer}")
    >>> tokenizer.apply_chat_template(conversation, tokenize=False)
    'Question: What is 1 + 2?\nAnswer: It is 3.<|im_end|>'
"""

import json
from typing import Any

from cera.data.template import TemplateError

QUESTION, ANSWER = "{question}", "{answer}"

TEMPLATE = (
    "BOS{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- BEFORE + message['content'] -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- PROMPT + SPACE + message['content'] + eos_token -}}"
    "{%- else -%}{{- raise_exception('plain text has no turn of the role ' + message['role']) -}}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- PROMPT -}}{%- endif -%}"
)
"""Chat template; the words in capitals stand for parts of the text."""


def check_text_template(text: str) -> None:
    """Raise ``ValueError`` unless ``text`` has ``{question}`` in it once, and ``{answer}`` once, at its end."""
    if text.count(QUESTION) != 1 or text.count(ANSWER) != 1 or not text.endswith(ANSWER):
        raise ValueError(f"data.template must have {QUESTION} in it once, and {ANSWER} once, at its end, got {text!r}.")


def set_text_template(tokenizer: Any, text: str) -> None:
    """Let ``tokenizer`` render a question and its answer as plain text, with its end-of-text token after the answer.

    White space before ``{answer}`` is written by the model, not given in the prompt, so that the text is split into
    tokens as a whole text is. The text begins with the beginning-of-text token if the tokenizer adds one to texts.

    Args:
        tokenizer: A transformers tokenizer, whose chat template is replaced.
        text: See ``check_text_template``.

    Raises:
        TemplateError: The tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token is None:
        raise TemplateError("data.template: the tokenizer has no end-of-text token to end an answer with.")
    before, _, between = text.removesuffix(ANSWER).partition(QUESTION)
    prompt = between.rstrip()
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    parts = {"BEFORE": before, "PROMPT": prompt, "SPACE": between[len(prompt) :]}
    template = TEMPLATE.replace("BOS", "{{- bos_token -}}" if begins else "")
    for name, part in parts.items():
        template = template.replace(name, json.dumps(part, ensure_ascii=False))
    tokenizer.chat_template = template
