"""The page of verdicts: one row a claim, and below it each claim with its tests, from committed summaries alone.

page = claims_page(read_claims(Path("configs/claims/paper.yaml")), Path("results"), Path("benchmarks/results"))

The same files give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cera.spectral.convention import PROTOCOLS, Convention
from cera.spectral.measures import MEASURES
from cera.studies.claim_evidence import Evidence, benchmark_evidence, evidence, not_run
from cera.studies.claims import Claim, ClaimTest
from cera.studies.report_tables import markdown_table
from cera.studies.results import Results
from cera.studies.verdicts import Decision, Verdict, adjust, decide, together

SCALES = {
    "tunnel_": ("wind tunnel", "in the wind tunnel, a scale model of 3.3M parameters"),
    "smol_": ("SmolLM2", "with SmolLM2-135M"),
}
"""A column's heading and words for the scale, by how a study's name begins; benchmarks are of SmolLM2."""

MOST_NOTES = 8
"""Number of methods whose rates are listed one by one."""

HEAD = """# The claims

What [the paper](paper.md) claims in version 5, and what holds of it at the scales of this repository. This page is made
by

```
cera study claims configs/claims/paper.yaml --out docs/claims.md
```

from `results/STUDY/summary.json` and `benchmarks/results`, the same bytes each time. The claims, their comparisons,
margins and rules were written down in `configs/claims/paper.yaml` before any of the studies that they name had results.
Known by then were the benchmarks, the wind tunnel's checks (`tunnel_sanity`) and single runs on SmolLM2.

"""

RULES = """## The rules

- Each method is taken at its own best rate, which the validation's perplexity chooses, over all seeds or over those
  with which the study searches; what is compared is of other rows. Where a pattern such as `cera-*` names several
  methods, the best one by the same perplexity is taken.
- Differences are paired by seed. Intervals are 95%: Student's over the seeds, or of 10,000 bootstrap resamples of
  seeds and problems where there is a score for each problem (`Student`, `bootstrap` below). "log" marks differences
  of logarithms: 0.01 is 1%.
- **Above or below zero**: the claim holds if the interval excludes zero in the claimed direction and contains or
  exceeds the size that the claim names, if it names one. It does not hold if the interval excludes zero in the other
  direction, falls short of that size, or lies within the margin, which is the smallest difference that matters. An
  interval that excludes zero counts only if Holm's p-value is below 0.05, adjusted for all such tests of the same
  study.
- **Within the margin** (a claim of equality): it holds if the interval lies within the margin, and does not hold if
  it lies wholly outside.
- All else is undecided, with the number of seeds that would decide it with power 0.8, by the spread that was observed,
  if the true difference were the margin. Of a claim of equality, or one against another number than zero ("below
  0.25"), it is that for a true difference of zero.
- A test of accuracies, or of right steps, is undecided where no method is above the floor that it names: methods that
  cannot do a task are all alike.
- A claim holds if all its tests hold, and does not hold if one does not.
- **Changed when results were known**: the floors, when `tunnel_table2` had shown one, and before `table1`; the CeRAs
  without dropout (`-d0`), which joined `tunnel_ceiling` after its first 80 runs, and without which
  `cera-below-any-lora` is undecided; two seeds beside the three of `tunnel_fig1`, as several of its tests said that
  five would decide them; rates of `smol_ceiling` between 1e-3 and 1e-2, which joined for CeRA and for LoRA of r=256
  after a first look, and turned `cera-below-any-lora` there; and the code, which had not followed the rule of sizes
  where an interval has zero in it (`er-gap`).
- A slope is that of the metric's logarithm over the logarithm of the rank, by least squares for each seed. Robustness
  is the validation's loss above the best, averaged over the logarithm of the rate; a run that diverged counts as the
  base's loss, and no rate as worse.
- A correlation is Spearman's: across methods at their best rates (bootstrap of methods), or the mean over methods of
  that within each.
"""


@dataclass(frozen=True)
class Tested:
    """A test with what was found.

    Attributes:
        test: The test.
        evidence: What there is for it; ``None`` if its study has not been run.
        decision: The verdict.
        missing: What would run it.
    """

    test: ClaimTest
    evidence: Evidence | None
    decision: Decision
    missing: str = ""


def examine(claims: Sequence[Claim], results: Path, benchmarks: Path) -> dict[str, list[Tested]]:
    """Return the tests of each claim with their verdicts, by the claim's id.

    Args:
        claims: The claims.
        results: Directory of ``STUDY/summary.json``.
        benchmarks: Directory of ``BENCHMARK.json``.

    Raises:
        FileError: A file is no summary, or no result of a benchmark.
    """
    tests = [test for claim in claims for test in claim.tests]
    found = [_find(test, results, benchmarks) for test in tests]
    estimates = [None if known is None or known.says_nothing else known.estimate for known, _ in found]
    adjusted = adjust(tests, estimates)
    tested = iter(
        Tested(test, known, _decision(test, known, p_value), missing)
        for test, (known, missing), p_value in zip(tests, found, adjusted, strict=True)
    )
    return {claim.id: [next(tested) for _ in claim.tests] for claim in claims}


def _find(test: ClaimTest, results: Path, benchmarks: Path) -> tuple[Evidence | None, str]:
    if test.kind == "benchmark":
        path = benchmarks / f"{test.study}.json"
        return (benchmark_evidence(test, path), "") if path.exists() else (None, f"python -m benchmarks {test.study}")
    study = Results.find(test.study, results, results)
    if study.summary is None or not_run(test, study.summary):
        return None, f"cera study run configs/studies/{test.study}.yaml"
    return evidence(test, study.summary), ""


def _decision(test: ClaimTest, known: Evidence | None, adjusted: float | None) -> Decision:
    if known is None:
        return Decision("not tested here yet", "")
    if known.says_nothing:
        return Decision("undecided", known.says_nothing)
    return decide(test, known.estimate, adjusted, known.unit)


# The page


def claims_page(claims: Sequence[Claim], results: Path, benchmarks: Path) -> str:
    """Return the page; see ``examine`` for arguments and errors."""
    tested = examine(claims, results, benchmarks)
    headings = [heading for heading, _ in SCALES.values()]
    rows = [
        (f"[{claim.id}](#{claim.id})", _line(claim.claim), claim.section, *_verdicts(tested[claim.id]))
        for claim in claims
    ]
    table = markdown_table(("claim", "in our words", "where", *headings), rows)
    details = "\n".join(_section(claim, tested[claim.id]) for claim in claims)
    return f"{HEAD}{table}\n{RULES}\n{details}"


def _verdicts(tested: Sequence[Tested]) -> list[str]:
    """Return the verdict at each scale; a dash where no test of the claim is of that scale."""
    verdicts = []
    for prefix in SCALES:
        at_scale: list[Verdict] = [found.decision.verdict for found in tested if _scale(found.test) == prefix]
        verdict = together(at_scale)
        verdicts.append("-" if not at_scale and tested else f"**{verdict}**" if verdict == "holds" else verdict)
    return verdicts


def _scale(test: ClaimTest) -> str:
    return "tunnel_" if test.study.startswith("tunnel_") else "smol_"


def _section(claim: Claim, tested: Sequence[Tested]) -> str:
    lines = [f"## {claim.id}", "", f"{_line(claim.claim)} ({claim.section})", ""]
    if claim.changed:
        lines += [f"*Other versions, controls, caveats*: {_line(claim.changed)}", ""]
    if claim.missing:
        lines += [f"*Not tested here yet*: {_line(claim.missing)}", ""]
    if tested:
        lines += [markdown_table(("test", "claimed", "result", "verdict"), [_row(found) for found in tested])]
    return "\n".join([*lines, f"*What would decide it at the paper's scale*: {_line(claim.at_scale)}", ""])


def _row(found: Tested) -> tuple[str, str, str, str]:
    test = found.test
    number = f"{'log ' if test.log else ''}{' and '.join(f'`{metric}`' for metric in test.metrics)}".strip()
    number = {"slopes": f"slope of {number}", "correlation": f"correlation of {number}"}.get(test.kind, number)
    number = number or {"robustness": "loss lost over the rates"}.get(test.kind, "log ratio")
    what = f"{_line(test.says)}: {number}, {_terms(test)}{_convention(test)}; `{test.study}`, {SCALES[_scale(test)][1]}"
    claimed = {"above": "> 0", "below": "< 0", "within": "= 0"}[test.side]
    numbers = {"margin": test.margin, "size": test.size, "floor": test.floor}
    claimed += "".join(f", {name} {number:g}" for name, number in numbers.items() if number is not None)
    if found.evidence is None:
        return what, claimed, f"`{found.missing}`", found.decision.verdict
    verdict, decision = found.decision.verdict, found.decision
    why = "" if not decision.why else f": {decision.why}"
    return what, claimed, _result(found.evidence, decision), f"**{verdict}**{why}"


def _terms(test: ClaimTest) -> str:
    """Return the sum in words: ``cera - lora``, ``0.5 cera-* ...``."""
    less = "" if not test.against else f" {'+' if test.against < 0 else '-'} {abs(test.against):g}"
    if test.kind == "benchmark":
        return f"`{test.detail}`{less}"
    if test.kind == "correlation":
        return f"{test.detail} `{next(iter(test.weights))}`"
    terms = []
    for method, weight in test.weights.items():
        share = "" if abs(weight) == 1 else f"{abs(weight):.3g} "
        terms.append(f"{'-' if weight < 0 else '+'} {share}`{method}`")
    return " ".join(terms).removeprefix("+ ") + less


def _convention(test: ClaimTest) -> str:
    """Return the convention of spectral metrics in words; nothing of others."""
    for metric in test.metrics:
        quantity = next((name for name in ("latent", "weight") if metric.startswith(f"{name}_")), "update")
        for protocol, convention in PROTOCOLS.items():
            suffix = "" if protocol == "ours" else f"_{protocol}"
            for centring, centre in {"": convention.centre, "_centred": True, "_uncentred": False}.items():
                if metric.removeprefix(f"{quantity}_") in {f"{name}{suffix}{centring}" for name in MEASURES}:
                    words = _words(replace(convention, centre=centre), quantity)
                    return f" (protocol {protocol}{', but' if centring else ':'} {words})"
    return ""


def _words(convention: Convention, quantity: str) -> str:
    centred = "centred" if convention.centre else "not centred"
    return f"{quantity}, {centred}, {convention.aggregation}"


def _result(known: Evidence, decision: Decision) -> str:
    parts = list(known.notes)
    if len(parts) > MOST_NOTES:
        at_edge = sum("of its grid" in note or "the only rate" in note for note in parts)
        parts = [f"{len(parts)} methods, each at its best rate, {at_edge} of them at the edge of the grid"]
    estimate = known.estimate
    if estimate is not None:
        interval = "no interval" if estimate.low is None else f"[{estimate.low:.3g}, {estimate.high:.3g}]"
        problems = "" if estimate.problems is None else f" and {estimate.problems} problems"
        p_value = "" if decision.adjusted is None else f", p (Holm) {_p(decision.adjusted)}"
        size = f"n = {estimate.seeds} {known.unit if estimate.seeds != 1 else known.unit.removesuffix('s')}{problems}"
        method = "" if estimate.low is None else f", {known.method}"
        parts.insert(0, f"{estimate.mean:+.3g} {interval}, {size}{method}{p_value}")
    return "; ".join(parts)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _line(text: str) -> str:
    return " ".join(text.split())
