"""The settings of generation, and sampling that depends on the problem alone and not on the batch."""

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

NAN_LOGITS = "The model's logits are not numbers: no answer can be generated. float16 may be too narrow for the model."


@dataclass(frozen=True)
class Sampling:
    """The settings of generation.

    Args:
        samples: Number of answers to each prompt.
        temperature: Divides the logits; 0 takes the most probable token each time (greedy).
        top_p: Sample from the fewest most probable tokens that together have this probability (nucleus sampling,
            Holtzman et al. 2020); 1 keeps all.
        top_k: Sample from this many most probable tokens; 0 keeps all.
        max_new_tokens: Maximum length of an answer, in tokens.
        stop: Strings before the first of which an answer ends.
        seed: Seed of the samples.

    Raises:
        ValueError: A setting is out of its range; the message names it.
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


class NotANumberError(FloatingPointError, ValueError):
    """A model computes NaN, so that no token is more probable than another."""


class RefuseNaN(LogitsProcessor):
    """Leaves the scores as they are, and raises ``NotANumberError`` if one is NaN, which greedy search would take."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (rows, vocabulary)."""
        if scores.isnan().any():
            raise NotANumberError(NAN_LOGITS)
        return scores


class InverseCDF(LogitsProcessor):
    """Samples each row's token from that row's own stream of uniform numbers, by inverting the distribution function.

    The sampled token is the only one that keeps a finite score, so greedy search finds it. With torch's global
    generator a row would get other numbers whenever the batch changes.

    Args:
        sampling: Temperature (above 0), ``top_k`` and ``top_p``.
        streams: (rows, max_new_tokens) fp64 in [0, 1), one number for each token.
        start: Position in a row where its answer begins.
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
        """Return scores (rows, vocabulary): 0 for the sampled token, ``-inf`` for all others.

        Raises:
            NotANumberError: The model's logits are NaN.
        """
        cumulative = self.warpers(input_ids, scores.double()).softmax(dim=-1).cumsum(dim=-1)
        total = cumulative[:, -1:]  # 1 up to rounding
        if total.isnan().any():
            raise NotANumberError(NAN_LOGITS)
        uniform = self.streams[:, input_ids.shape[1] - self.start, None]
        tokens = torch.searchsorted(cumulative, uniform * total, right=True)
        return torch.full_like(scores, -math.inf).scatter(1, tokens, 0.0)


def uniforms(seed: int, key: str, number: int, count: int) -> Tensor:
    """Return the first ``count`` numbers of a sample's own stream, (count,) fp64 in [0, 1).

    Args:
        seed: The seed of all samples.
        key: The name of the prompt.
        number: The number of the sample among those of its prompt.
        count: How many; a shorter stream is the beginning of a longer one.
    """
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(_digest(seed, key, number))))
    return torch.from_numpy(generator.random(count))


def seed_of_sample(seed: int, key: str, number: int) -> int:
    """Return a sample's own seed in [0, 2^63), for an engine that has a generator for each request.

    Args:
        seed: The seed of all samples.
        key: The name of the prompt.
        number: The number of the sample among those of its prompt.
    """
    return int.from_bytes(_digest(seed, key, number)[:8]) >> 1


def _digest(seed: int, key: str, number: int) -> bytes:
    return hashlib.sha256(f"{seed}/{number}/{key}".encode()).digest()
