"""Where an answer ends: at an end token, at a stop string, or at the longest length."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from cera.data.layout import end_of_turn
from cera.evaluation.generation.backend import Sample
from cera.models.generate import end_tokens


class StopStrings(StoppingCriteria):
    """Ends a row as soon as its answer, without the prompt, contains one of the strings.

    Args:
        strings: Non-empty strings.
        tokenizer: The model's tokenizer.
        start: Position in a row where its answer begins.

    Attributes:
        lengths: For each row that was ended, the number of its tokens up to the one that completed the string.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Any, start: int) -> None:
        self.strings = strings
        self.tokenizer = tokenizer
        self.start = start
        self.lengths: dict[int, int] = {}
        # a token is at least one byte; one more token, as a tokenizer may drop a space before the first
        self.window = max((len(string.encode()) for string in strings), default=0) + 1

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return which rows are ended, (rows,) bool."""
        length = input_ids.shape[1] - self.start
        for row, tokens in enumerate(input_ids[:, -min(length, self.window) :].tolist()):
            if row not in self.lengths:
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                if any(string in text for string in self.strings):
                    self.lengths[row] = length
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        ended[list(self.lengths)] = True
        return ended


def answer_ends(generation_config: Any, tokenizer: Any, stop: Sequence[str]) -> set[int]:
    """Return the ids of the tokens that end an answer.

    They include the chat template's end of a turn, and stop strings that are one special token, since special tokens
    never appear in the decoded text.

    Args:
        generation_config: The model's generation config, of transformers.
        tokenizer: The model's tokenizer.
        stop: The stop strings.
    """
    special = tokenizer.get_added_vocab()
    stop_tokens = {special[string] for string in stop if string in special}
    return end_tokens(generation_config, tokenizer) | end_of_turn(tokenizer) | stop_tokens


def cut_sample(tokens: list[int], ends: set[int], stop: Sequence[str], tokenizer: Any) -> Sample:
    """Return the answer in a generated row, without end token, stop string, and padding after the end.

    Args:
        tokens: The generated token ids.
        ends: Ids of the tokens that end an answer.
        stop: The stop strings.
        tokenizer: The model's tokenizer.
    """
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    cuts = [position for position in map(text.find, stop) if position >= 0]
    return Sample(
        text=text[: min(cuts, default=None)],
        tokens=len(tokens) if end is None else end + 1,
        finished=end is not None or bool(cuts),
    )
