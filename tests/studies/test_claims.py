"""Verdicts on claims: the rules on synthetic summaries from known distributions, and the committed page."""

import json
import math
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from cera.cli.main import main
from cera.studies.claim_evidence import benchmark_evidence, evidence
from cera.studies.claims import ClaimError, ClaimTest, read_claims
from cera.studies.claims_page import claims_page, examine
from cera.studies.definition import ReportOptions, Selection, read_definition
from cera.studies.estimates import Estimate, method_difference
from cera.studies.problem_scores import ProblemScores
from cera.studies.selection import student
from cera.studies.summary import RunSummary, Summary
from cera.studies.verdicts import adjust, decide, needed, together

REPOSITORY = Path(__file__).parents[2]
CLAIMS = REPOSITORY / "configs" / "claims" / "paper.yaml"
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


# The rules


@pytest.mark.parametrize(
    ("test", "difference", "deviation", "seeds", "expected", "why"),
    [
        (difference_test(), -0.05, 0.005, 5, "holds", "the claimed direction"),
        (difference_test(), 0.05, 0.005, 5, "does not hold", "the other direction"),
        (difference_test("above"), 0.05, 0.005, 5, "holds", "the claimed direction"),
        (difference_test("above"), -0.05, 0.005, 5, "does not hold", "the other direction"),
        (difference_test(), -0.004, 0.0005, 5, "does not hold", "a difference smaller than the margin"),
        (difference_test(), -0.01, 0.05, 5, "undecided", "the interval has zero in it"),
        (difference_test(), -0.05, 0.005, 1, "undecided", "no interval of fewer than two seeds"),
        (difference_test(size=0.05), -0.05, 0.005, 5, "holds", "direction and size"),
        (difference_test(size=0.05), -0.09, 0.005, 5, "holds", "direction and size"),
        (difference_test(size=0.2), -0.05, 0.005, 5, "does not hold", "the size does not"),
        (difference_test("within"), 0.0, 0.001, 5, "holds", "within the margin"),
        (difference_test("within"), 0.05, 0.001, 5, "does not hold", "outside"),
        (difference_test("within"), -0.05, 0.001, 5, "does not hold", "outside"),
        (difference_test("within"), 0.0, 0.05, 5, "undecided", "across the edge"),
    ],
)
def test_each_verdict_is_reached(test, difference, deviation, seeds, expected, why) -> None:
    summary = normal({"lora": 0.0, "cera": difference}, deviation, seeds)
    found = verdict(test, summary)
    assert found[0] == expected
    assert why in found[1]


def test_swapping_the_methods_turns_the_verdict_around() -> None:
    """A negative control: an error of direction does not pass."""
    summary = normal({"lora": 0.0, "cera": -0.05}, 0.005, 5)
    swapped = difference_test(cera=-1.0, lora=1.0)
    assert verdict(difference_test(), summary)[0] == "holds"
    assert verdict(swapped, summary)[0] == "does not hold"


def test_a_true_difference_of_zero_is_rarely_called_one() -> None:
    verdicts = [verdict(difference_test(), normal({"lora": 0.0, "cera": 0.0}, 0.02, 3, i))[0] for i in range(300)]
    assert verdicts.count("holds") <= 15  # 2.5% are 7.5; more than 15 have a chance of half a percent
    assert "does not hold" in verdicts  # as rarely, in the other direction


def test_one_family_makes_a_small_p_value_undecided() -> None:
    estimate = Estimate(-0.05, -0.09, -0.01, 0.03, 5)
    tests = [difference_test()] * 3
    alone, together_ = adjust(tests[:1], [estimate]), adjust(tests, [estimate] * 3)
    assert alone == [0.03]
    assert together_ == pytest.approx([0.09] * 3)
    assert decide(tests[0], estimate, alone[0]).verdict == "holds"
    assert "not significant after Holm" in decide(tests[0], estimate, together_[0]).why
    # another study is another family, and claims of equality are in none
    other = replace(tests[0], study="smol_made")
    assert adjust([tests[0], other, difference_test("within")], [estimate] * 3) == [0.03, 0.03, None]


def test_the_number_of_seeds_that_it_says_decides_it() -> None:
    """With so many seeds, a true difference of the margin is found in 80 of 100 studies."""
    test, deviation = difference_test(margin=0.01), 0.02
    generator = np.random.default_rng(0)
    sample = generator.standard_normal(8)
    sample = list((sample - sample.mean()) / sample.std(ddof=1) * deviation)  # the spread is known exactly
    found = student(sample)
    assert found is not None
    said = needed(test, Estimate(*found))
    number = int(said.split()[1])
    assert said == f"about {number} seeds would decide it"
    studies = test.margin + deviation * generator.standard_normal((2000, number))
    share = (stats.ttest_1samp(studies, 0, axis=1).pvalue < 0.05).mean()
    assert 0.75 < share < 0.86


def test_a_claim_needs_all_of_its_tests() -> None:
    assert together(["holds", "holds"]) == "holds"
    assert together(["holds", "undecided"]) == "undecided"
    assert together(["holds", "not tested here yet"]) == "undecided"
    assert together(["undecided", "does not hold", "not tested here yet"]) == "does not hold"
    assert together(["not tested here yet"]) == together([]) == "not tested here yet"


# The evidence


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


# The page


@pytest.fixture
def results(tmp_path) -> Path:
    """A directory with one synthetic summary under the name of a study that a claim names."""
    summary = normal({"lora-r192": 0.0, "lora-r16": 0.0001, "cera-r16": -0.1}, 0.001, 5)
    replace(summary, study="tunnel_fig1").save(tmp_path / "tunnel_fig1" / "summary.json")
    return tmp_path


def test_the_page_is_the_same_bytes_each_time(results) -> None:
    claims, benchmarks = read_claims(CLAIMS), REPOSITORY / "benchmarks" / "results"
    first = claims_page(claims, results, benchmarks)
    assert first == claims_page(read_claims(CLAIMS), results, benchmarks)
    (row,) = (line for line in first.splitlines() if line.startswith("| [lora-plateau]"))
    assert row.endswith("| **holds** | not tested here yet |")
    assert "n = 5 seeds, Student; lora-r192 at lr0.01; lora-r16 at lr0.01" in first
    assert "`cera study run configs/studies/smol_ceiling.yaml`" in first
    # a negative control: another number is another page
    file = results / "tunnel_fig1" / "summary.json"
    content = json.loads(file.read_text())
    for changed in content["runs"]:
        if changed["method"] == "lora-r16":
            changed["values"]["held_out_perplexity"] *= 1.1
    file.write_text(json.dumps(content))
    second = claims_page(claims, results, benchmarks)
    (row,) = (line for line in second.splitlines() if line.startswith("| [lora-plateau]"))
    assert row.endswith("| does not hold | not tested here yet |")


@pytest.mark.parametrize("state", ["not begun", "running", "stopped", "failed"])
def test_a_part_of_a_study_tests_what_it_has(results, state) -> None:
    """Of the three methods of the summary two make up lora-plateau, and the third is in no state to be compared."""
    file = results / "tunnel_fig1" / "summary.json"
    content = json.loads(file.read_text())
    for changed in content["runs"]:
        if changed["method"] == "cera-r16":
            changed["state"] = state
    file.write_text(json.dumps(content))
    verdicts = {
        claim: [test.decision.verdict for test in tests if test.test.study == "tunnel_fig1"]
        for claim, tests in examine(read_claims(CLAIMS), results, results).items()
    }
    assert verdicts["lora-plateau"] == ["holds"]
    expected = "undecided" if state == "failed" else "not tested here yet"
    assert verdicts["cera-r64-below-lora-r512"] == [expected]
    assert verdicts["er-saturates-for-lora"] == ["not tested here yet"]  # the summary lacks its methods


def test_the_committed_page_is_what_the_command_makes(tmp_path, capsys) -> None:
    directories = [
        f"--{name}={REPOSITORY / path}" for name, path in (("results", "results"), ("benchmarks", "benchmarks/results"))
    ]
    assert main(["study", "claims", str(CLAIMS), *directories, f"--out={tmp_path / 'claims.md'}"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'claims.md'}\n"
    again = f"run `cera study claims {CLAIMS.relative_to(REPOSITORY)} --out docs/claims.md`"
    assert (tmp_path / "claims.md").read_bytes() == (REPOSITORY / "docs" / "claims.md").read_bytes(), again
    assert main(["study", "claims", str(CLAIMS), *directories]) == 0
    assert capsys.readouterr().out == (tmp_path / "claims.md").read_text()


def test_claims_name_what_their_studies_measure() -> None:
    claims = read_claims(CLAIMS)
    assert len(claims) >= 16
    for test in (test for claim in claims for test in claim.tests if test.kind != "benchmark"):
        definition = read_definition(REPOSITORY / "configs" / "studies" / f"{test.study}.yaml")
        methods = {planned.method for planned in definition.runs}
        for pattern in test.weights:
            assert any(fnmatchcase(method, pattern) for method in methods), (test.study, pattern)
        assert set(test.metrics) <= {*definition.report.metrics}, (test.study, test.metrics)
        assert math.isclose(sum(test.weights.values()), 0, abs_tol=1e-8) or test.kind == "correlation", test


def test_a_file_that_is_no_summary_is_an_error(results) -> None:
    (results / "tunnel_fig1" / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tunnel_fig1/summary.json is no summary of a study"):
        examine(read_claims(CLAIMS), results, results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is": "higher"}, "claim a, test 1: is must be one of above, below, within, got 'higher'"),
        ({"margin": 0}, "claim a, test 1: margin and size must be positive, got 0.0 and None"),
        ({"margin": "x"}, "claim a, test 1: margin must be a number, got 'x'"),
        ({"metric": ["a", "b"]}, "claim a, test 1: metric must name 1 of what was measured"),
        ({"robustness": {"x": 1}}, "claim a, test 1 needs one of contrast, .*, got contrast, robustness"),
        ({"against": 1}, "only a benchmark is measured against a number other than zero, got 1.0"),
        ({"contrast": {"x": "y"}}, "claim a, test 1, contrast: x must be a number, got 'y'"),
        ({"other": 1}, "other"),
    ],
)
def test_a_wrong_claim_is_one_clear_error(tmp_path, change, message) -> None:
    test = {"study": "s", "says": "b", "contrast": {"x": 1, "y": -1}, "metric": "m", "is": "above", "margin": 0.1}
    claim = {"id": "a", "section": "b", "claim": "c", "at_scale": "d", "tests": [test]}
    file = tmp_path / "claims.yaml"
    file.write_text(yaml.safe_dump([claim]))
    assert read_claims(file)[0].tests[0].weights == {"x": 1.0, "y": -1.0}
    file.write_text(yaml.safe_dump([{**claim, "tests": [{**test, **change}]}]))
    with pytest.raises(ClaimError, match=message):
        read_claims(file)
    file.write_text(yaml.safe_dump([claim, claim]))
    with pytest.raises(ClaimError, match="repeated are a"):
        read_claims(file)
