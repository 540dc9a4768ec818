"""Finds the turns of a conversation in its rendered text, in time linear in its length.

The conversation is also rendered with a placeholder for the content of each turn, which shows what the template writes
around contents. That depends on the roles of the turns, so it is needed once for all conversations of the same roles.
The contents are then found in the text one after the other, between what is written around them.
"""

import re
from dataclasses import dataclass
from typing import Any

from cera.data.rows import describe
from cera.data.template import ConversationError, Message, TemplateError, prepare_template, render, squeezed

Span = tuple[int, int]
"""Start and end in characters."""

PLACEHOLDER = re.compile("\ue000([0-9]+)\ue001")
"""What stands for the content of the turn of that number, in characters of Unicode's private use area."""

RENDERED = 32
"""Maximum number of different texts before answers, and after answers, that are told apart by rendering more."""


@dataclass(frozen=True)
class Turn:
    """A turn in the rendered text.

    Attributes:
        number: Its number in the conversation.
        content: Span of its content.
        answer: Span of an answer: from the end of the generation prompt to the end of the turn, with the end-of-turn
            token and without white space after it. ``None`` for other roles.
    """

    number: int
    content: Span
    answer: Span | None


@dataclass(frozen=True)
class Frame:
    """What the template writes around the content of one turn.

    Attributes:
        number: The turn's number in the conversation.
        header: The text from the content of the turn before to this one's, or to the end of the generation prompt.
        opening: The text from the end of the generation prompt to the content, such as an empty thought.
        ending: For an answer, the text from the content to the end of the turn; ``None`` for other roles.
    """

    number: int
    header: str
    opening: str
    ending: str | None

    def find(self, text: str, position: int, content: str, following: str, is_last: bool) -> Span | None:
        """Return the span of the content in ``text``, or ``None`` if the template changes it.

        Args:
            text: The rendered conversation.
            position: Where this turn's header begins.
            content: The content, of which the template may trim white space.
            following: What the template writes between this content and the next one, or at the end.
            is_last: Whether ``following`` is the end of the text.
        """
        start = position + len(self.header)
        if not text.startswith(self.header, position):
            return None
        if text.startswith(self.opening, start):
            start += len(self.opening)
            for trimmed in (content, content.strip(), content.rstrip(), content.lstrip(), content.strip("\n")):
                end = start + len(trimmed)
                is_whole = end + len(following) == len(text) or not is_last
                if is_whole and text.startswith(trimmed, start) and text.startswith(following, end):
                    return start, end
        return self._find_rewritten(text, position + len(self.header), content, following, is_last)

    def _find_rewritten(self, text: str, start: int, content: str, following: str, is_last: bool) -> Span | None:
        """Return the span of an answer that is written with other white space, as templates do with a thought."""
        end = len(text) - len(following) if is_last else text.find(following, start)
        if self.ending is None or end < start or not text.startswith(following, end):
            return None
        return (start, end) if squeezed(content) in squeezed(text[start:end]) else None


@dataclass(frozen=True)
class Layout:
    """What a template writes around the contents of turns.

    Attributes:
        frames: One for each turn whose content is rendered.
        tail: The text after the last of these contents.
    """

    frames: list[Frame]
    tail: str

    def turns(self, text: str, messages: list[Message]) -> list[Turn]:
        """Return the turns whose contents are in ``text``, the rendered ``messages``.

        Raises:
            ConversationError: The template changes the content of a turn by more than white space.
        """
        turns: list[Turn] = []
        position = 0
        for frame, following in zip(self.frames, [*(frame.header for frame in self.frames[1:]), None], strict=True):
            message = messages[frame.number]
            end = self.tail if following is None else following
            content = frame.find(text, position, message["content"], end, is_last=following is None)
            if content is None:
                raise ConversationError(
                    f"the chat template changes the {message['role']} turn {describe(message['content'])}, or renders "
                    "a turn differently once others follow it."
                )
            start, position = position + len(frame.header), content[1]
            answer = None if frame.ending is None else (start, position + len(frame.ending))
            turns.append(Turn(frame.number, content, answer))
        return turns


def lay_out(tokenizer: Any, roles: tuple[str, ...]) -> Layout:
    """Return what the tokenizer's template writes around the contents of turns with these roles.

    Raises:
        TemplateError: Answers cannot be told from prompts.
    """
    messages = [{"role": role, "content": f"\ue000{number}\ue001"} for number, role in enumerate(roles)]
    text = render(tokenizer, messages)
    parts = PLACEHOLDER.split(text)
    pieces, shown = parts[::2], [int(number) for number in parts[1::2]]
    answers = {number for number, role in enumerate(roles) if role == "assistant"}
    if shown != sorted(set(shown)) or not answers <= set(shown):
        raise TemplateError(
            "The chat template leaves out an answer, or renders a turn twice or out of order. Use a template in which "
            "each turn is rendered by itself."
        )
    edges = _Edges(tokenizer, messages, text)
    frames = []
    position = 0
    for number, piece, following in zip(shown, pieces, pieces[1:], strict=False):
        position += len(piece)
        prompt = edges.prompt_end(number, piece, position) - position + len(piece) if number in answers else len(piece)
        ending = edges.ending(number, following) if number in answers else None
        frames.append(Frame(number, piece[:prompt], piece[prompt:], ending))
        position += len(messages[number]["content"])
    return Layout(frames, pieces[-1])


def additions(tokenizer: Any) -> list[str]:
    """Return sentences on what the template adds to conversations, such as a system turn of its own, or the date."""
    sentences: list[str] = []
    try:
        frames = lay_out(tokenizer, ("user", "assistant", "user", "assistant")).frames
    except TemplateError:  # the data tell whether the template can be used for them
        return sentences
    if len(frames) < 4:
        return sentences
    header = frames[2].header.removeprefix(frames[1].ending or "").strip()
    for roles, name in ((("user",), "without"), (("system", "user"), "with")):
        try:
            beginning = lay_out(tokenizer, roles).frames[0].header.strip()
        except TemplateError:
            continue
        for role in ("system", "System", "SYSTEM"):
            beginning = beginning.removesuffix(re.sub("user", role, header, flags=re.IGNORECASE))
        added = beginning.removesuffix(header).strip()
        if added not in ("", tokenizer.bos_token):
            sentences.append(f"The chat template begins conversations {name} a system turn with {added!r}.")
    return sentences


def end_of_turn(tokenizer: Any) -> set[int]:
    """Return the id of the added token that the chat template writes after an answer, such as ``<|im_end|>``.

    The tokenizer of a base model often names another end-of-sequence token than its own template's, with which no
    answer of a model that was trained in this template would end. The set is empty without a template or such a token.
    """
    if tokenizer.chat_template is None:
        return set()
    try:
        prepare_template(tokenizer)
        ending = lay_out(tokenizer, ("user", "assistant")).frames[-1].ending or ""
    except TemplateError:  # whoever renders with it says so
        return set()
    first = tokenizer(ending.lstrip(), add_special_tokens=False)["input_ids"][:1]
    return set(first) & tokenizer.added_tokens_decoder.keys()


class _Edges:
    """Finds where answers begin and end, by rendering the conversation up to them.

    Args:
        tokenizer: Its chat template renders.
        messages: The conversation, with placeholders as contents.
        text: The whole conversation, rendered.
    """

    def __init__(self, tokenizer: Any, messages: list[Message], text: str) -> None:
        self.tokenizer = tokenizer
        self.messages = messages
        self.text = text
        self._openings: dict[str, int] = {}
        self._endings: dict[str, str] = {}

    def prompt_end(self, number: int, piece: str, content: int) -> int:
        """Return where the generation prompt of answer ``number`` ends.

        Args:
            number: The turn's number in the conversation.
            piece: The text between the content of the turn before and that of the answer.
            content: Where the content of the answer begins.

        Raises:
            TemplateError: The text does not begin with the prompt for the answer.
        """
        if number == 0:  # without a turn before it, templates render no generation prompt
            return content
        if piece not in self._openings:
            _check_number(self._openings)
            prompt = render(self.tokenizer, self.messages[:number], add_generation_prompt=True)
            if not self.text.startswith(prompt):
                raise TemplateError(
                    "The chat template does not render the prompt for an answer as it renders the answer's turn, so "
                    "answers cannot be found in the text. Use a template whose generation prompt begins such a turn."
                )
            self._openings[piece] = content - len(prompt)
        return content - self._openings[piece]

    def ending(self, number: int, following: str) -> str:
        """Return the end of the turn of answer ``number``, which is at the beginning of the ``following`` text.

        It is what follows the content in any case, whether other turns follow or the conversation ends there.
        """
        if number == len(self.messages) - 1:
            return following.rstrip()
        if following not in self._endings:
            _check_number(self._endings)
            turn = render(self.tokenizer, self.messages[: number + 1])
            closing = PLACEHOLDER.split(turn)[-1]
            self._endings[following] = self._common(closing, following).rstrip()
        return self._endings[following]

    def _common(self, closing: str, following: str) -> str:
        """Return the longest common beginning of two texts, in whole tokens."""
        if following.startswith(closing):
            return closing
        ours, theirs = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (closing, following))
        encoded = self.tokenizer(closing, add_special_tokens=False, return_offsets_mapping=True)
        end = 0
        for token, other, (_, stop) in zip(ours, theirs, encoded["offset_mapping"], strict=False):
            if token != other:
                break
            end = stop
        return closing[:end]


def _check_number(known: dict[str, Any]) -> None:
    if len(known) == RENDERED:
        raise ConversationError(
            f"the chat template writes more than {RENDERED} different texts between the turns of one conversation."
        )
