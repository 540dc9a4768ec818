"""Similar words, and how a message suggests them."""

import difflib
from collections.abc import Iterable, Sequence

CERTAIN = 0.9
"""Similarity from which on a word can hardly be another."""


def closest(word: str, options: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Return up to three options that resemble ``word``, best first; only one if it can hardly be another.

    Example:
        >>> closest("max_step", ["max_steps", "max_time"])
        ['max_steps']
    """
    matches = difflib.get_close_matches(word, list(options), cutoff=cutoff)
    if matches and difflib.SequenceMatcher(None, matches[0], word).ratio() >= CERTAIN:
        return matches[:1]
    return matches


def did_you_mean(near: Sequence[str], otherwise: str = "") -> str:
    """Return the question which of ``near`` was meant, or ``otherwise`` if there is none."""
    return f"Did you mean {' or '.join(near)}?" if near else otherwise
