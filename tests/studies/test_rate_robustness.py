"""What a method loses over learning rates, by hand."""

import math
from dataclasses import replace

import pytest
from made_summaries import RATES, run, synthetic

from cera.studies.rate_robustness import loss_over_rates


def losses(method: str, by_rate: dict[float, float], seed: int = 0) -> list:
    return [run(method, rate, seed, {"perplexity": math.exp(loss)}) for rate, loss in by_rate.items()]


def test_loss_is_averaged_over_the_logarithm_of_the_rate_whatever_their_order() -> None:
    """A rate that is near another one counts for less: the middle third of the range lies between 0.01 and 0.1."""
    rates = {1.0: 3.0, 0.001: 2.0, 0.1: 2.2, 0.01: 2.0}
    lost = loss_over_rates(synthetic(losses("lora", rates)), "lora")
    assert lost.rates == (0.001, 0.01, 0.1, 1.0)
    assert lost.above_best("seed0") == pytest.approx((0.0 + 0.1 + 0.6) / 3)
    assert lost.share_good("seed0") == 0.5
    assert lost.seeds == ["seed0"]


def test_a_seed_counts_only_with_a_loss_at_every_rate() -> None:
    whole = losses("lora", dict.fromkeys(RATES, 2.0))
    *others, last = losses("lora", dict.fromkeys(RATES, 2.0), seed=1)
    summary = synthetic([*whole, *others, replace(last, state="failed")])
    assert loss_over_rates(summary, "lora").seeds == ["seed0"]


def test_nothing_is_worse_than_the_base() -> None:
    """A run above the base's loss counts as the base, and so does one that diverged, if there is a base."""
    first, second, third = losses("lora", {0.001: 2.0, 0.01: 2.0, 0.1: 9.0})
    base = replace(first, base_perplexity=math.exp(3.0))
    for last in (third, replace(third, state="diverged", values={})):
        lost = loss_over_rates(synthetic([base, second, last]), "lora")
        assert lost.above_best("seed0") == pytest.approx(0.25)
        assert lost.diverged == (last.state == "diverged")
        assert lost.above_base == 1
    assert loss_over_rates(synthetic([first, second, replace(third, state="diverged")]), "lora").seeds == []
