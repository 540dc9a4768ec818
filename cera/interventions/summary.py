"""Means over answer tokens with intervals over problems, for all tokens and by their difficulty.

A token's difficulty is its NLL under the frozen base, without the adapter. The tokens are sorted by it and divided into
ten parts of equal size; ties stay in the tokens' order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cera.evaluation.clusters import ClusterBootstrap
from cera.interventions.scores import TokenScores

DECILES = 10
RESAMPLES = 10_000
"""Number of resamples of the problems."""


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens, and the 95% interval from resampling problems with all of their tokens.

    Attributes:
        value: The mean.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} ({self.low:+.4f}, {self.high:+.4f})"


@dataclass(frozen=True)
class ConditionSummary:
    """One condition.

    Attributes:
        label: Its name, such as ``"affine full"``.
        nll: NLL per token, in nats.
        difference: NLL less that of the unchanged adapter, paired by token.
        kl: KL(whole || condition) per token, in nats; zero for ``"whole"``.
    """

    label: str
    nll: Estimate
    difference: Estimate
    kl: Estimate


@dataclass(frozen=True)
class DecileSummary:
    """The tokens of one decile of difficulty.

    Attributes:
        decile: 1 (easiest) to 10.
        tokens: Number of tokens.
        base: NLL of the base per token.
        nll: NLL by label of the condition.
        difference: NLL less that of the unchanged adapter, by label.
        benefit: NLL of another adapter less that of this one: positive where this one is better. ``None`` without
            another.
    """

    decile: int
    tokens: int
    base: Estimate
    nll: dict[str, Estimate]
    difference: dict[str, Estimate]
    benefit: Estimate | None


class Summarizer:
    """Computes means and intervals of the scores of some tokens, all from the same resamples.

    Args:
        scores: The tokens.
        resamples: Number of resamples of the problems.
        seed: Seed of the resamples.
    """

    def __init__(self, scores: TokenScores, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self.scores = scores
        self._bootstrap = ClusterBootstrap(scores.problem, resamples=resamples, seed=seed)

    def estimate(self, values: np.ndarray, where: np.ndarray | None = None) -> Estimate:
        """Return mean and interval of one number for each token, (tokens,), over the tokens ``where`` is true."""
        interval = self._bootstrap.interval(values, where)
        return Estimate(self._bootstrap.mean(values, where), interval.low, interval.high)

    def conditions(self) -> list[ConditionSummary]:
        """Return the summary of each condition, beginning with the unchanged adapter."""
        whole = self.scores.nll["whole"]
        return [
            ConditionSummary(
                label,
                self.estimate(nll),
                self.estimate(nll - whole),
                self.estimate(self.scores.kl.get(label, np.zeros_like(nll))),
            )
            for label, nll in self.scores.nll.items()
        ]

    def deciles(self, other: np.ndarray | None = None) -> list[DecileSummary]:
        """Return the summary of each decile of difficulty.

        Args:
            other: NLL of another adapter, (tokens,).

        Raises:
            ValueError: There are fewer tokens than deciles.
        """
        numbers, scores = decile_numbers(self.scores.base), self.scores
        summaries = []
        for decile in range(1, DECILES + 1):
            where = numbers == decile
            summaries.append(
                DecileSummary(
                    decile,
                    int(where.sum()),
                    self.estimate(scores.base, where),
                    self._by_label(scores.nll, where),
                    self._by_label({label: nll - scores.nll["whole"] for label, nll in scores.nll.items()}, where),
                    None if other is None else self.estimate(other - scores.nll["whole"], where),
                )
            )
        return summaries

    def _by_label(self, values: Mapping[str, Any], where: np.ndarray) -> dict[str, Estimate]:
        return {label: self.estimate(numbers, where) for label, numbers in values.items()}


def decile_numbers(difficulty: np.ndarray) -> np.ndarray:
    """Return the decile of each token, 1 to 10, (tokens,) int64.

    Raises:
        ValueError: There are fewer than ten tokens.
    """
    if len(difficulty) < DECILES:
        raise ValueError(f"deciles need at least {DECILES} answer tokens, got {len(difficulty)}; take more rows.")
    ranks = np.empty(len(difficulty), dtype=np.int64)
    ranks[np.argsort(difficulty, kind="stable")] = np.arange(len(difficulty))
    return ranks * DECILES // len(difficulty) + 1
