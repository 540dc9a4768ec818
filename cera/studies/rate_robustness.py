"""How much a method loses where its learning rate is not the best one, over the rates and seeds of a study.

    lost = loss_over_rates(summary, "lora")
    lost.above_best("seed0")  # nats above the best rate's loss, averaged over the logarithm of the rate

The loss is the validation's. It counts at most as much as the base's, which also stands for a run that diverged: who
sees an adapter fail goes on with the base. ``cera.studies.lr_robustness`` does without a base, from run directories.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cera.studies.lr_robustness import TOLERANCE, mean_above_lowest
from cera.studies.summary import Summary


@dataclass(frozen=True)
class LossOverRates:
    """The losses of a method.

    Attributes:
        losses: Loss in nats by rate (ascending) and seed; a run that failed or has not ended has none.
        diverged: Number of runs that diverged.
        above_base: Number of runs that are worse than the base, those that diverged among them.
    """

    losses: Mapping[float, Mapping[str, float]]
    diverged: int
    above_base: int

    @property
    def rates(self) -> tuple[float, ...]:
        """The rates, ascending."""
        return tuple(self.losses)

    @property
    def seeds(self) -> list[str]:
        """The seeds that have a loss at every rate."""
        shared = [set(by_seed) for by_seed in self.losses.values()]
        return sorted(set.intersection(*shared)) if shared else []

    def above_best(self, seed: str) -> float:
        """Return the loss above that of the seed's best rate, averaged over the logarithm of the rate."""
        return mean_above_lowest(self.rates, [self.losses[rate][seed] for rate in self.rates])

    def share_good(self, seed: str) -> float:
        """Return the share of the rates whose perplexity is within ``TOLERANCE`` of the seed's best."""
        losses = np.array([self.losses[rate][seed] for rate in self.rates])
        return float(np.mean(losses - losses.min() <= math.log1p(TOLERANCE)))


def loss_over_rates(summary: Summary, method: str) -> LossOverRates:
    """Return a method's losses over the rates of a study that selects the rate."""
    bases = [run.base_perplexity for run in summary.runs if run.base_perplexity is not None]
    worst = math.log(bases[0]) if bases else math.inf
    losses: dict[float, dict[str, float]] = {}
    diverged = above_base = 0
    for label, rate in sorted(summary.grid(method).items(), key=lambda item: item[1]):
        by_seed = losses.setdefault(rate, {})
        for seed, run in summary.runs_by_seed(method, label).items():
            diverged += run.state == "diverged"
            known = run.values.get("perplexity") if run.state == "finished" else None
            perplexity = math.inf if run.state == "diverged" else known
            if perplexity is None:
                continue
            loss = math.log(perplexity)
            above_base += loss > worst
            if min(loss, worst) < math.inf:
                by_seed[seed] = min(loss, worst)
    return LossOverRates(losses, diverged, above_base)
