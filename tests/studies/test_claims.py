"""The file of claims and the page of their verdicts, on synthetic summaries and as committed."""

import json
import math
import re
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml
from made_summaries import normal

from cera.cli.main import main
from cera.studies.claims import ClaimError, read_claims
from cera.studies.claims_page import claims_page, examine
from cera.studies.definition import read_definition

REPOSITORY = Path(__file__).parents[2]
CLAIMS = REPOSITORY / "configs" / "claims" / "paper.yaml"


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
    assert re.search(r"n = 5 seeds, Student, p \(Holm\) \S+ \S+; lora-r192 at lr0.01; lora-r16 at lr0.01 \|", first)
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


def test_a_test_whose_methods_are_at_the_floor_is_undecided(results) -> None:
    """It is so whatever the other rules would say, and is no part of Holm's family."""
    (claim,) = (claim for claim in read_claims(CLAIMS) if claim.id == "cera-r64-below-lora-r512")
    test = next(test for test in claim.tests if test.study == "tunnel_fig1")
    high, low = (replace(claim, tests=(replace(test, floor=floor),)) for floor in (100.0, 0.1))
    (above,), (at_floor,) = (examine([each], results, results)[claim.id] for each in (low, high))
    assert above.decision.verdict == "holds"
    assert at_floor.decision.verdict == "undecided"
    assert at_floor.decision.adjusted is None
    assert at_floor.decision.why.startswith("no method is above the floor of 100, the best has")
    assert ", floor 100 |" in claims_page([high], results, results)


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
    assert set(verdicts["er-saturates-for-lora"]) == {"not tested here yet"}  # the summary lacks its methods


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
        a_difference = test.kind == "correlation" or all(metric.endswith("_difference") for metric in test.metrics)
        assert math.isclose(sum(test.weights.values()), 0, abs_tol=1e-8) or a_difference, test


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
        ({"against": 1}, "against is for logarithms .*, got 1.0"),
        ({"floor": "low"}, "claim a, test 1: floor must be a number, got 'low'"),
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
