"""Answers to prompts: greedy or sampled, several a prompt, in batches that do not change what is answered."""

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import (
    Cache,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cera.models.generate import encode, end_tokens, generation_mode, max_positions
from cera.models.output_head import head_reads

TokenIds = list[int]


@dataclass(frozen=True)
class Sampling:
    """How prompts are answered.

    Args:
        samples: Answers a prompt.
        temperature: The logits are divided by it; 0 takes the most probable token each time (greedy).
        top_p: Sample from the fewest most probable tokens that together have this probability (nucleus sampling,
            Holtzman et al. 2020); 1 keeps all.
        top_k: Sample from that many most probable tokens; 0 keeps all.
        max_new_tokens: Longest answer, in tokens.
        stop: An answer ends before the first of these strings.
        seed: Of the samples: another one gives other samples.

    Raises:
        ValueError: A setting cannot be; the message names it.
    """

    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    stop: list[str] = field(default_factory=list)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("top_k", 0), ("max_new_tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"sampling.{name} must be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"sampling.temperature must be 0 (greedy) or a positive number, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p must be in (0, 1], got {self.top_p}.")
        if isinstance(self.stop, str) or not all(isinstance(string, str) and string for string in self.stop):
            raise ValueError(f"sampling.stop must be a list of strings, none of them empty, got {self.stop!r}.")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(
                f"sampling.samples must be 1 for greedy answers, which are all the same, got {self.samples}; "
                "or set sampling.temperature above 0."
            )


@dataclass(frozen=True)
class Sample:
    """One answer.

    Attributes:
        text: Without special tokens and without the stop string.
        tokens: How many were generated, the end token included.
        finished: False where ``max_new_tokens`` cut it off.
    """

    text: str
    tokens: int
    finished: bool


class Backend(Protocol):
    """What answers prompts."""

    def generate(
        self, prompts: Sequence[str], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Answer prompts, and hand over each one's samples as soon as it is finished.

        Args:
            prompts: Rendered text, with the special tokens that belong in it.
            keys: A name for each prompt. A sample depends on the prompt and on (seed, key, its number), not on what
                else is asked.
            sampling: How to answer.

        Yields:
            A position in ``prompts`` and the samples of that prompt; positions come in any order.
        """
        ...


class TransformersBackend:
    """Answers of a transformers causal language model, computed in batches with ``model.generate``.

    Prompts go by length, the longest first: too little memory shows at once. A prompt is computed once; its samples
    start from copies of its keys and values. Of the model's ``generation_config`` only the end tokens count, so
    that greedy is greedy. In half precision the width of a batch moves the logits in their last bits, and with them,
    now and then, a token.

    Args:
        model: With or without PEFT adapters, in any mode; it is in eval mode while a batch is computed, and in its own
            between two of them.
        tokenizer: Its tokenizer. An answer ends at its end-of-sequence token, or at one of the model's.
        batch_size: Sequences that are generated at a time.

    Raises:
        ValueError: ``batch_size`` is less than 1, or the active adapter is made of virtual tokens (prompt tuning and
            its like), which a prompt's keys and values cannot be told from.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        adapter = getattr(model, "active_peft_config", None)
        if adapter is not None and adapter.is_prompt_learning:
            raise ValueError(f"Adapters of virtual tokens are not supported, got {adapter.peft_type.value}.")
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def generate(
        self, prompts: Sequence[str], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, list[Sample]]]:
        """As in ``Backend``.

        Raises:
            ValueError: Keys are not one for each prompt and unique; a prompt is empty, or too long for the model.
        """
        return self.complete([encode(self.tokenizer, prompt) for prompt in prompts], keys, sampling)

    def complete(
        self, prompts: Sequence[TokenIds], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, list[Sample]]]:
        """``generate`` for prompts that are token ids."""
        if len(keys) != len(prompts) or len(set(keys)) < len(keys):
            raise ValueError(f"keys must be unique, one for each of the {len(prompts)} prompts, got {list(keys)}.")
        check_lengths(dict(zip(keys, prompts, strict=True)), sampling, self.model.config)
        return self._in_batches(prompts, keys, sampling)

    def _in_batches(
        self, prompts: Sequence[TokenIds], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, list[Sample]]]:
        order = sorted(range(len(prompts)), key=lambda position: -len(prompts[position]))
        at_a_time = max(1, self.batch_size // sampling.samples)
        for start in range(0, len(order), at_a_time):
            positions = order[start : start + at_a_time]
            answers = self._answer([prompts[i] for i in positions], [keys[i] for i in positions], sampling)
            yield from zip(positions, answers, strict=True)

    @torch.no_grad()  # not inference_mode: ZeRO-3 keeps tensors that it gathers here
    def _answer(self, prompts: list[TokenIds], keys: list[str], sampling: Sampling) -> list[list[Sample]]:
        ends = _end_tokens(self.model, self.tokenizer, sampling.stop)
        pad = self.tokenizer.pad_token_id
        pad = min(ends, default=0) if pad is None else pad
        ids, mask = left_padded(prompts, pad, next(self.model.parameters()).device)
        settings = {"eos_token_id": sorted(ends) or None, "pad_token_id": pad, "use_cache": True}
        answers: list[list[Sample]] = [[] for _ in prompts]
        with generation_mode(self.model):
            shared = self._prefill(ids, mask, settings)
            for start in range(0, sampling.samples, self.batch_size):
                numbers = range(start, min(start + self.batch_size, sampling.samples))
                cache = shared if numbers.stop == sampling.samples else copy.deepcopy(shared)
                streams = [uniforms(sampling.seed, key, i, sampling.max_new_tokens) for key in keys for i in numbers]
                generated = self._decode(ids, mask, cache, streams, sampling, settings)
                for row, tokens in enumerate(generated):
                    sample = _sample(tokens, ends, sampling.stop, self.tokenizer)
                    answers[row // len(numbers)].append(sample)
        return answers

    def _prefill(self, ids: Tensor, mask: Tensor, settings: dict[str, Any]) -> Cache | None:
        """Keys and values of all but each prompt's last token, which ``generate`` needs to go on from.

        ``None`` if a prompt is only one token: then there is nothing to compute beforehand.
        """
        if not mask[:, :-1].any(dim=1).all():
            return None
        # transformers gives the head a slice of the hidden states, for each row of which torch would copy its weight
        with head_reads(self.model.get_output_embeddings(), Tensor.contiguous):
            return self.model.generate(
                input_ids=ids[:, :-1],
                attention_mask=mask[:, :-1],
                max_new_tokens=1,  # of which the keys and values are not computed
                return_dict_in_generate=True,
                **settings,
            ).past_key_values

    def _decode(
        self,
        ids: Tensor,
        mask: Tensor,
        cache: Cache | None,
        streams: list[Tensor],
        sampling: Sampling,
        settings: dict[str, Any],
    ) -> list[TokenIds]:
        """What follows each prompt, once for each of its streams; those of one prompt follow each other."""
        repeats, start = len(streams) // len(ids), ids.shape[1]
        if cache is not None:
            cache.batch_repeat_interleave(repeats)
        processors, criteria = LogitsProcessorList(), StoppingCriteriaList()
        if sampling.temperature > 0:
            processors.append(InverseCDF(sampling, torch.stack(streams).to(ids.device), start))
        stopping = StopStrings(sampling.stop, self.tokenizer, start)
        if sampling.stop:
            criteria.append(stopping)
        output = self.model.generate(
            input_ids=ids.repeat_interleave(repeats, dim=0),
            attention_mask=mask.repeat_interleave(repeats, dim=0),
            past_key_values=cache,
            max_new_tokens=sampling.max_new_tokens,
            logits_processor=processors,
            stopping_criteria=criteria,
            **settings,
        )
        rows = output[:, start:].tolist()
        return [tokens[: stopping.lengths.get(row)] for row, tokens in enumerate(rows)]


class InverseCDF(LogitsProcessor):
    """Samples from each row's own stream of uniforms, and leaves the greedy search that token to find.

    Torch's global generator would hand a row other numbers whenever the batch changes.

    Args:
        sampling: Temperature (above 0), ``top_k``, ``top_p``.
        streams: (rows, longest answer) fp64 in [0, 1), one number a token.
        start: Where answers begin in a row's tokens.
    """

    def __init__(self, sampling: Sampling, streams: Tensor, start: int) -> None:
        self.streams = streams
        self.start = start
        self.warpers: Any = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
        if sampling.top_k:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(float(sampling.top_p)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, vocabulary): 0 for the sampled token, ``-inf`` for all others.

        Raises:
            FloatingPointError: The model's logits are not numbers.
        """
        cumulated = self.warpers(input_ids, scores.double()).softmax(dim=-1).cumsum(dim=-1)
        total = cumulated[:, -1:]
        if total.isnan().any():
            raise FloatingPointError("The model's logits are not numbers: there is nothing to sample from.")
        uniform = self.streams[:, input_ids.shape[1] - self.start, None]
        tokens = torch.searchsorted(cumulated, uniform * total, right=True)  # of the total, which rounding moves off 1
        return torch.full_like(scores, -math.inf).scatter(1, tokens, 0.0)


class StopStrings(StoppingCriteria):
    """Ends a row as soon as its answer, without the prompt, has one of the strings in it.

    Args:
        strings: Not empty, any of which ends a row.
        tokenizer: Of the model.
        start: Where answers begin in a row's tokens.

    Attributes:
        lengths: For each row that was ended, its tokens up to the one that completed the string.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Any, start: int) -> None:
        self.strings = strings
        self.tokenizer = tokenizer
        self.start = start
        self.lengths: dict[int, int] = {}
        # a token is a byte or more; a tokenizer may drop a space before the first one
        self.window = max((len(string.encode()) for string in strings), default=0) + 1

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are ended, (rows,) bool."""
        length = input_ids.shape[1] - self.start
        for row, tokens in enumerate(input_ids[:, -min(length, self.window) :].tolist()):
            if row not in self.lengths:
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                if any(string in text for string in self.strings):
                    self.lengths[row] = length
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        ended[list(self.lengths)] = True
        return ended


def uniforms(seed: int, key: str, number: int, count: int) -> Tensor:
    """The first ``count`` numbers of a sample's own stream, (count,) fp64 in [0, 1).

    Args:
        seed: Of all samples.
        key: The prompt's name.
        number: Which sample of the prompt.
        count: As many as an answer may have tokens; those of a shorter stream are the first of a longer one.
    """
    digest = hashlib.sha256(f"{seed}/{number}/{key}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest)))
    return torch.from_numpy(generator.random(count))


def left_padded(rows: Sequence[TokenIds], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (rows, longest row) int64, of rows that end together.

    Args:
        rows: Token ids.
        pad: Fills a row's beginning.
        device: Where the tensors go.
    """
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def check_lengths(prompts: Mapping[str, TokenIds], sampling: Sampling, config: Any) -> None:
    """Raise ``ValueError`` if a prompt has no tokens, or is too long to be answered.

    Args:
        prompts: Tokens by key.
        sampling: How long an answer may be.
        config: The model's, of transformers.
    """
    longest = max_positions(config)
    for key, prompt in prompts.items():
        if not prompt:
            raise ValueError(f"The prompt of {key} has no tokens.")
        if len(prompt) + sampling.max_new_tokens > longest:
            raise ValueError(
                f"The prompt of {key} has {len(prompt)} tokens, which leaves no room for "
                f"sampling.max_new_tokens={sampling.max_new_tokens} in the model's {longest} positions."
            )


def _end_tokens(model: Any, tokenizer: Any, stop: Sequence[str]) -> set[int]:
    """Tokens that end an answer, among them stop strings that are one special token and never appear as text."""
    special = tokenizer.get_added_vocab()
    named = {special[string] for string in stop if string in special}
    return end_tokens(model, tokenizer) | named


def _sample(tokens: TokenIds, ends: set[int], stop: Sequence[str], tokenizer: Any) -> Sample:
    """The answer in a row's tokens, of which those after the end are padding."""
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    cuts = [place for place in map(text.find, stop) if place >= 0]
    return Sample(
        text=text[: min(cuts, default=None)],
        tokens=len(tokens) if end is None else end + 1,
        finished=end is not None or bool(cuts),
    )
