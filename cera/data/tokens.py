"""Splits rendered conversations into tokens as inference sees them.

Three things differ from a call of the tokenizer:

- A prompt is split as at inference, where its answer does not follow. In ``A: Yes`` a tokenizer may make one token of
  the space and the word, but at inference the prompt ends with the space, and the model writes the word.
- Text that a user wrote is not taken for the template's. A literal ``<|im_end|>`` in an answer is spelled in tokens of
  ordinary text.
- A long text is cut before it is split, so that memory and time depend on the number of tokens that are used.
"""

import copy
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from tokenizers.processors import ByteLevel

from cera.data.layout import Span, Turn

CHARACTERS_PER_TOKEN = 8
"""Length of text that is split at first, for each token; more is split if it gives too few tokens."""

MARGIN = 64
"""Number of tokens before the cut of a long text that the cut may have changed."""


class Tokens(NamedTuple):
    """Token ids, and the span of each in the text; tokens of one character of several bytes share its span."""

    ids: list[int]
    spans: list[Span]


class TokenSplitter:
    """Splits rendered conversations into tokens.

    Args:
        tokenizer: A fast transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = _with_whole_spans(tokenizer)
        self.added = tokenizer.added_tokens_decoder
        self.limits = {tokenizer.bos_token_id, tokenizer.eos_token_id}
        self.anchor = next((t.content for t in self.added.values() if _can_anchor(t)), "")

    def __call__(self, text: str, turns: Sequence[Turn], limit: int) -> Tokens:
        """Return the first ``limit`` tokens of a rendered conversation, or all if there are fewer."""
        starts = [turn.answer[0] for turn in turns if turn.answer]
        size = CHARACTERS_PER_TOKEN * (limit + MARGIN)
        while True:
            tokens = self._split_at(text[:size], starts)
            if size >= len(text) or len(tokens.ids) >= limit + MARGIN:
                break
            size *= 4
        tokens = self._spell_contents(text, tokens, turns)
        return Tokens(tokens.ids[:limit], tokens.spans[:limit])

    def _split_at(self, text: str, starts: Sequence[int]) -> Tokens:
        """Return the tokens of ``text``, split at each of the ``starts`` as at the end of a prompt.

        If the tokenizer writes parts of a text in another way, it is split as a whole.
        """
        cuts = [start for start in starts if 0 < start < len(text)]
        tokens = self._tokens(text[: cuts[0]] if cuts else text)
        for start, end in pairwise([*cuts, len(text)]):
            part = self._continuation(text[start:end], start)
            if part is None:
                return self._tokens(text)
            tokens.ids.extend(part.ids)
            tokens.spans.extend(part.spans)
        return tokens

    def _tokens(self, text: str) -> Tokens:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return Tokens(encoded["input_ids"], encoded["offset_mapping"])

    def _continuation(self, text: str, start: int) -> Tokens | None:
        """Return the tokens of ``text``, which stands at ``start`` of a longer one; ``None`` if they do not spell it.

        Some tokenizers write a space before the beginning of a text. It is therefore split behind a special token.
        """
        ids, spans = self._tokens(self.anchor + text)
        if self.tokenizer.decode(ids, clean_up_tokenization_spaces=False) != self.anchor + text:
            return None
        if self.anchor:
            ids, spans = ids[1:], spans[1:]
        shift = start - len(self.anchor)
        return Tokens(ids, [(a + shift, b + shift) for a, b in spans])

    def _spell_contents(self, text: str, tokens: Tokens, turns: Sequence[Turn]) -> Tokens:
        """Replace added tokens in contents by tokens of ordinary text.

        These are all special tokens in answers, which the model is to write as text, and in any content the tokens that
        the template writes around turns. Others in a prompt are left as inference reads them.
        """
        added = [i for i, token in enumerate(tokens.ids) if token in self.added]
        places = {i: _place(text, tokens.spans[i], turns) for i in added}
        written = self.limits | {tokens.ids[i] for i, turn in places.items() if turn is None}
        spelled = {}
        for i, turn in places.items():
            token = self.added[tokens.ids[i]]
            if turn is not None and (tokens.ids[i] in written or (turn.answer and token.special)):
                spelled[i] = self._spelled(text, tokens.spans[i])
        if not any(spelled.values()):
            return tokens
        ids, spans = [], []
        for i, (token, span) in enumerate(zip(*tokens, strict=True)):
            part = spelled.get(i) or Tokens([token], [span])
            ids += part.ids
            spans += part.spans
        return Tokens(ids, spans)

    def _spelled(self, text: str, span: Span) -> Tokens | None:
        """Return tokens of ordinary text for an added token, which it is not if its first character is split off."""
        middle = _core(text, span)[0] + 1
        first = self._continuation(text[span[0] : middle], span[0])
        rest = self._continuation(text[middle : span[1]], middle)
        return Tokens(first.ids + rest.ids, first.spans + rest.spans) if first and rest else None


def _core(text: str, span: Span) -> Span:
    """Return the span of an added token without the white space around it that some take in."""
    surface = text[span[0] : span[1]]
    return span[1] - len(surface.lstrip()), span[0] + len(surface.rstrip())


def _place(text: str, span: Span, turns: Sequence[Turn]) -> Turn | None:
    """Return the turn in whose content a token is; ``None`` for one that the template writes, or of white space."""
    start, end = _core(text, span)
    before = bisect_right(turns, start, key=lambda turn: turn.content[0])
    if before == 0 or start >= end or end > turns[before - 1].content[1]:
        return None
    return turns[before - 1]


def _with_whole_spans(tokenizer: Any) -> Any:
    """Return a tokenizer whose spans have the white space that belongs to a token, which some tokenizers trim."""
    spans = tokenizer("x y", add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if all(end == start for (_, end), (start, _) in pairwise(spans)):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=False)
    return tokenizer


def _can_anchor(token: Any) -> bool:
    """Return whether a special token leaves the text beside it as it is."""
    return token.special and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
