"""The interface of what generates answers: another engine needs only a class with this ``generate``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cera.evaluation.generation.sampling import Sampling


@dataclass(frozen=True)
class Sample:
    """One generated answer.

    Attributes:
        text: The answer, without special tokens and without the stop string.
        tokens: Number of generated tokens, including the end token.
        finished: False if ``max_new_tokens`` cut it off.
    """

    text: str
    tokens: int
    finished: bool


class Backend(Protocol):
    """Generates answers to prompts."""

    def generate(
        self, prompts: Sequence[str], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Generate samples for each prompt, and yield them as soon as the prompt is finished.

        Args:
            prompts: Rendered text, with the special tokens that belong in it.
            keys: A unique name for each prompt. A sample depends on the prompt and on (seed, key, its number), not on
                the other prompts.
            sampling: The settings.

        Yields:
            A position in ``prompts`` and the samples of that prompt; the positions come in any order.
        """
        ...


def check_keys(prompts: Sequence[str], keys: Sequence[str]) -> None:
    """Check that each prompt has a key of its own.

    Raises:
        ValueError: The keys are not unique, one for each prompt.
    """
    if len(keys) != len(prompts) or len(set(keys)) < len(keys):
        raise ValueError(f"keys must be unique, one for each of the {len(prompts)} prompts, got {list(keys)}.")
