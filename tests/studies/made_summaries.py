"""Synthetic summaries of studies from known distributions, and claims about them, for tests of verdicts."""

import math

import numpy as np

from cera.studies.claim_evidence import evidence
from cera.studies.claims import ClaimTest
from cera.studies.definition import ReportOptions, Selection
from cera.studies.summary import RunSummary, Summary
from cera.studies.verdicts import adjust, decide

RATES = (0.001, 0.01, 0.1)


def run(method: str, rate: float, seed: int, values: dict[str, float], state: str = "finished", **others) -> RunSummary:
    """A run of a synthetic study."""
    labels = {"adapter": method, "learning_rate": f"lr{rate:g}", "seed": f"seed{seed}"}
    name = "-".join(labels.values())
    return RunSummary(name, method, labels, {"learning_rate": rate}, state, None, 1000, values, **others)


def synthetic(runs: list[RunSummary]) -> Summary:
    """A summary of synthetic runs."""
    selection = Selection("learning_rate", "perplexity", "min")
    return Summary("tunnel_made", ("adapter", "learning_rate", "seed"), selection, ReportOptions(), tuple(runs))


def normal(differences: dict[str, float], deviation: float, seeds: int, number: int = 0) -> Summary:
    """Losses that are normal: 1 plus the method's difference at its best rate, 0.01, and half a nat more at others."""
    generator = np.random.default_rng(number)
    runs = []
    for method, difference in differences.items():
        for rate in RATES:
            for seed in range(seeds):
                loss = 1 + difference + 0.5 * abs(math.log10(rate / 0.01)) + deviation * generator.standard_normal()
                perplexity = math.exp(loss)
                runs.append(run(method, rate, seed, {"perplexity": perplexity, "held_out_perplexity": perplexity}))
    return synthetic(runs)


def difference_test(
    side: str = "below", margin: float = 0.01, size: float | None = None, **weights: float
) -> ClaimTest:
    chosen = weights or {"cera": 1.0, "lora": -1.0}
    return ClaimTest("tunnel_made", "", "contrast", chosen, ("held_out_perplexity",), True, side, 0.0, margin, size)


def verdict(test: ClaimTest, summary: Summary) -> tuple[str, str]:
    known = evidence(test, summary)
    (adjusted,) = adjust([test], [known.estimate])
    decision = decide(test, known.estimate, adjusted, known.unit)
    return decision.verdict, decision.why
