"""The numbers behind verdicts, on synthetic summaries, by hand and against scipy."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from made_summaries import RATES, difference_test, normal, run, synthetic, verdict
from scipy import stats

from cera.studies.claim_evidence import benchmark_evidence, evidence
from cera.studies.claims import read_claims
from cera.studies.estimates import method_difference
from cera.studies.problem_scores import ProblemScores
from cera.studies.verdicts import decide


def test_the_best_of_a_pattern_is_chosen_by_the_validation() -> None:
    """The reported metric would choose the other one."""
    runs = [
        run(method, rate, seed, {"perplexity": validation + abs(rate - 0.01), "held_out_perplexity": held_out + seed})
        for method, validation, held_out in (("cera-a", 2.0, 9.0), ("cera-b", 3.0, 5.0), ("lora", 4.0, 7.0))
        for rate in RATES
        for seed in range(2)
    ]
    test = replace(difference_test(), weights={"cera-*": 1.0, "lora": -1.0}, log=False)
    known = evidence(test, synthetic(runs))
    assert known.estimate is not None
    assert known.estimate.mean == 2.0
    assert known.notes == ("cera-a, best of 2 at lr0.01", "lora at lr0.01")


def test_rates_at_the_edge_and_incomplete_ones_are_said() -> None:
    summary = normal({"lora": 0.0, "cera": -0.05}, 0.001, 3)
    stopped = [replace(r, state="diverged") if r.name == "cera-lr0.01-seed1" else r for r in summary.runs]
    known = evidence(difference_test(), replace(summary, runs=tuple(stopped)))
    assert "the lowest of its grid" in known.notes[0] or "the highest of its grid" in known.notes[0]
    nothing = [replace(r, state="failed") if r.method == "cera" else r for r in summary.runs]
    known = evidence(difference_test(), replace(summary, runs=tuple(nothing)))
    assert known.estimate is None
    assert known.notes == ("cera: at no rate have all seeds a result",)
    assert verdict(difference_test(), replace(summary, runs=tuple(nothing))) == ("undecided", "nothing to compare")
    assert evidence(difference_test(gone=1.0), summary).notes == ("gone: the study has no such method",)


def test_where_no_method_is_above_the_floor_nothing_is_said() -> None:
    """As of answers that no method gets right; one method above the floor is enough."""
    summary = normal({"lora": 0.0, "cera": -0.05}, 0.001, 3)
    test = replace(difference_test(), log=False)
    means = {method: evidence(replace(test, weights={method: 1.0}), summary).estimate for method in ("lora", "cera")}
    lora, cera = (estimate.mean for estimate in means.values() if estimate is not None)
    assert cera < lora
    assert evidence(replace(test, floor=(lora + cera) / 2), summary).says_nothing == ""
    known = evidence(replace(test, floor=lora + 0.01), summary)
    assert known.says_nothing == f"no method is above the floor of {lora + 0.01:g}, the best has {lora:.3g}"
    assert known.estimate is not None


def test_slopes_are_the_exponents_of_power_laws(tmp_path) -> None:
    text = "slopes: [{c1: 1, c4: 4, c16: 16}, {l1: 1, l4: 4, l16: 16}], metric: effective_rank, is: above, margin: 0.1"
    file = tmp_path / "claims.yaml"
    file.write_text(f"- {{id: a, section: b, claim: c, at_scale: d, tests: [{{study: tunnel_a, says: e, {text}}}]}}\n")
    test = read_claims(file)[0].tests[0]
    runs = [
        run(f"{name}{rank}", 0.01, seed, {"perplexity": 2.0, "effective_rank": (1 + seed) * rank**exponent})
        for name, exponent in (("c", 0.75), ("l", 0.25))
        for rank in (1, 4, 16)
        for seed in range(3)
    ]
    found = evidence(test, synthetic(runs)).estimate
    assert found is not None
    assert found.mean == pytest.approx(0.5)
    assert found.high - (found.low or 0) < 1e-9


def test_robustness_by_hand() -> None:
    """Over three rates, evenly spaced in the logarithm, ends count half: (0.5 + 0.3) / 2 / 2 against 0.1."""
    losses = {"cera": (0.1, 0.0, 0.1), "lora": (0.5, 0.0, 0.3)}
    runs = [
        run(method, rate, seed, {"perplexity": math.exp(1 + loss)})
        for method, each in losses.items()
        for rate, loss in zip(RATES, each, strict=True)
        for seed in range(2)
    ]
    weights = {"cera": 1.0, "lora": -1.0}
    test = replace(difference_test(), kind="robustness", weights=weights, metrics=(), log=False)
    found = evidence(test, synthetic(runs)).estimate
    assert found is not None
    assert found.mean == pytest.approx(0.05 - 0.2)
    # a run that diverged is as bad as the base, whose loss is 3, and needs a base; none is worse than it
    diverged = [
        replace(r, state="diverged") if r.method == "lora" and r.numbers["learning_rate"] == 0.1 else r for r in runs
    ]
    assert evidence(test, synthetic(diverged)).estimate is None
    based = [replace(diverged[0], base_perplexity=math.exp(3)), *diverged[1:]]
    known = evidence(test, synthetic(based))
    assert known.estimate is not None
    assert known.estimate.mean == pytest.approx(0.05 - (0.5 + 2) / 4)
    assert known.notes[0] == "lora: 2 runs diverged"
    fewer = [r for r in runs if not r.name.startswith("lora-lr0.1-")]
    assert evidence(test, synthetic(fewer)).notes == ("the methods do not have the same three rates or more",)


@pytest.mark.parametrize("detail", ["across", "within"])
def test_correlations(detail) -> None:
    """Effective rank and loss with a true rank correlation below zero, and the same with the sign turned around."""
    generator = np.random.default_rng(1)
    runs, turned = [], []
    for index in range(12):
        for rate in RATES:
            for seed in range(2):
                hidden = index + 10 * math.log10(rate) + generator.standard_normal()
                for made, sign in ((runs, -1), (turned, 1)):
                    loss = math.exp(sign * hidden / 50)
                    values = {
                        "perplexity": 2 + (rate != 0.01),
                        "held_out_perplexity": loss,
                        "effective_rank": 99 + hidden,
                    }
                    made.append(run(f"m{index}", rate, seed, values))
    metrics = ("effective_rank", "held_out_perplexity")
    test = replace(difference_test(), kind="correlation", weights={"*": 1.0}, metrics=metrics, detail=detail)
    known = evidence(test, synthetic(runs))
    assert known.estimate is not None
    assert known.estimate.mean == pytest.approx(-1)
    assert (known.unit, known.estimate.seeds) == ("methods", 12)
    assert verdict(test, synthetic(runs))[0] == "holds"
    assert verdict(test, synthetic(turned))[0] == "does not hold"


def test_correlation_is_scipys_with_an_interval_that_covers_it() -> None:
    generator = np.random.default_rng(2)
    points = generator.multivariate_normal([50, 50], [[1, -0.6], [-0.6, 1]], 16)
    runs = [
        run(f"m{i}", 0.01, 0, {"perplexity": 2.0, "effective_rank": float(x), "held_out_perplexity": float(y)})
        for i, (x, y) in enumerate(points)
    ]
    metrics = ("effective_rank", "held_out_perplexity")
    test = replace(difference_test(), kind="correlation", weights={"*": 1.0}, metrics=metrics, detail="across")
    found = evidence(test, synthetic(runs)).estimate
    assert found is not None
    assert found.mean == pytest.approx(stats.spearmanr(points).statistic)
    assert -1 <= (found.low or 0) < found.mean < (found.high or 0) <= 1
    assert evidence(test, synthetic(runs[:3])).estimate is None


def test_accuracies_are_compared_by_seed_and_problem() -> None:
    """A contrast of two methods is their difference in a report."""
    generator = np.random.default_rng(3)
    runs = []
    for method, share in (("lora", 0.3), ("cera", 0.6)):
        for seed in range(3):
            solved = "".join(str(int(x)) for x in generator.random(80) < share)
            values = {"perplexity": 2.0, "chain_pass@1": solved.count("1") / 80}
            runs.append(run(method, 0.01, seed, values, problems={"chain": ProblemScores("same", 1, solved)}))
    summary = synthetic(runs)
    test = replace(difference_test("above"), metrics=("chain_pass@1",), log=False)
    known = evidence(test, summary)
    assert known.estimate == method_difference(summary, ("lora", "lr0.01"), ("cera", "lr0.01"), "chain_pass@1")
    assert known.estimate is not None
    assert known.estimate.problems == 80
    assert verdict(test, summary)[0] == "holds"


def test_a_benchmarks_ratio_against_a_number(tmp_path) -> None:
    file = tmp_path / "decoding.json"
    file.write_text(json.dumps({"rows": [{"what": "time", "ratios": [1.01, 1.02, 1.03]}]}))
    test = replace(difference_test(), kind="benchmark", weights={}, metrics=(), against=math.log(1.06), detail="time")
    found = benchmark_evidence(test, file).estimate
    assert found is not None
    assert found.mean == pytest.approx(np.log([1.01, 1.02, 1.03]).mean() - math.log(1.06))
    assert decide(test, found, found.p_value).verdict == "holds"


@pytest.mark.parametrize("against", [-0.1, 0.0, 0.2])
def test_a_sum_against_a_number_is_scipys_one_sample_test(against) -> None:
    summary = normal({"lora": 0.0, "cera": 0.05}, 0.02, 5)
    perplexities = [summary.results(method, "held_out_perplexity")["lr0.01"] for method in ("cera", "lora")]
    differences = [math.log(perplexities[0][seed] / perplexities[1][seed]) for seed in perplexities[0]]  # type: ignore[operator]
    expected = stats.ttest_1samp(differences, against)
    found = evidence(replace(difference_test("above"), against=against), summary).estimate
    assert found is not None
    assert found.mean == pytest.approx(np.mean(differences) - against)
    assert (found.low, found.high) == pytest.approx(np.array(expected.confidence_interval()) - against)
    assert found.p_value == pytest.approx(expected.pvalue)
