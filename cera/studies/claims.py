"""The claims that studies test, as a file lists them before the studies are run: what is compared, and when it holds.

for claim in read_claims(Path("configs/claims/paper.yaml")):
    print(claim.id, [test.study for test in claim.tests])

A test is one number with an interval. It is said in one of five ways:

    contrast: {cera: 1, lora: -1}                        # a weighted sum of methods' metrics
    slopes: [{cera-r4: 4, cera-r16: 16}, {lora-r4: 4, lora-r16: 16}]  # the first's slope less the second's
    robustness: {cera: 1, lora: -1}                      # the same sum of the loss lost over the rates
    correlation: across                                  # or within: of two metrics, over methods or within them
    benchmark: "decoding, r=64: time of CeRA / LoRA"     # the logarithm of a ratio that a benchmark has measured
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml

from cera.foreign_files import FileError, one_line, require_file
from cera.foreign_yaml import load_yaml
from cera.studies.axes import mapping, only_keys

Kind = Literal["contrast", "slopes", "robustness", "correlation", "benchmark"]
Side = Literal["above", "below", "within"]
"""Where a claim has its number: above zero, below it, or within the margin around it."""

TEST_FIELDS = {"study", "says", *get_args(Kind), "metric", "of", "log", "is", "against", "margin", "size", "floor"}
TEXTS = ("id", "section", "claim", "changed", "at_scale")
METRICS = {"contrast": 1, "slopes": 1, "robustness": 0, "correlation": 2, "benchmark": 0}
"""Number of metrics that a test of each kind names."""


class ClaimError(FileError):
    """A file of claims is wrong; the message names the claim, the field, its value and what would be right."""


@dataclass(frozen=True)
class ClaimTest:
    """One number that a claim is about, and where it should be.

    Attributes:
        study: Name of the study, or of the benchmark.
        says: What is compared, in words.
        kind: How the number is made; see above.
        weights: Weight of each method or pattern of methods' names, of which the best one is taken, which the
            selection's metric decides.
        metrics: What is summed; of a correlation both metrics, of a robustness nothing.
        log: Whether logarithms are summed, so that differences are relative ones.
        side: Where the claim has the number.
        against: What is subtracted from the number first; zero unless ``log``.
        margin: The smallest difference that matters, > 0.
        size: The size that the claim names, > 0; ``None`` if it names none.
        detail: Within or across methods, or which row of the benchmark.
        floor: The mean of the metric that one of a contrast's methods must exceed for it to say anything; ``None`` if
            any does. Where no method can do a task, all are alike.
    """

    study: str
    says: str
    kind: Kind
    weights: Mapping[str, float]
    metrics: tuple[str, ...]
    log: bool
    side: Side
    against: float
    margin: float
    size: float | None = None
    detail: str = ""
    floor: float | None = None


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        id: A short name.
        section: Where in version 5 it stands.
        claim: The claim in our words.
        changed: What version 7 or the authors' own controls changed about it; may be empty.
        tests: All must hold for the claim to hold.
        at_scale: What would decide it at the scale of the paper.
        missing: What it would take to test it, if there are no tests.
    """

    id: str
    section: str
    claim: str
    changed: str
    tests: tuple[ClaimTest, ...]
    at_scale: str
    missing: str = ""


def read_claims(path: Path) -> list[Claim]:
    """Read a file of claims.

    Raises:
        ClaimError: The file is missing or wrong.
    """
    try:
        content = load_yaml(require_file(path).read_text(encoding="utf-8"))
        if not isinstance(content, list) or not content:
            raise ClaimError(f"a file of claims must be a list of claims, got {content!r:.60}.")
        claims = [_claim(entry) for entry in content]
        repeated = {claim.id for claim in claims if [other.id for other in claims].count(claim.id) > 1}
        if repeated:
            raise ClaimError(f"id must be another one for each claim, and repeated are {', '.join(sorted(repeated))}.")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ClaimError(f"{path}: {one_line(error)}") from error
    return claims


def _claim(content: Any) -> Claim:
    fields = mapping("a claim", content)
    where = f"claim {fields.get('id', '?')}"
    only_keys(where, fields, {*TEXTS, "tests", "missing"})
    texts = {name: fields.get(name, "") for name in (*TEXTS, "missing")}
    for name, text in texts.items():
        if not isinstance(text, str) or (not text and name not in ("changed", "missing")):
            raise ClaimError(f"{where}: {name} must be a text, got {text!r}.")
    tests = fields.get("tests", [])
    if not isinstance(tests, list) or bool(tests) == bool(texts["missing"]):
        raise ClaimError(f"{where} needs a list of tests, or else missing: what it would take to test it.")
    parsed = tuple(_test(f"{where}, test {number}", test) for number, test in enumerate(tests, 1))
    return Claim(tests=parsed, **texts)


def _test(where: str, content: Any) -> ClaimTest:
    fields = mapping(where, content)
    only_keys(where, fields, TEST_FIELDS)
    kinds = [kind for kind in get_args(Kind) if kind in fields]
    if len(kinds) != 1:
        raise ClaimError(f"{where} needs one of {', '.join(get_args(Kind))}, got {', '.join(kinds) or 'none'}.")
    kind: Kind = kinds[0]
    for name in ("study", "says"):
        if not isinstance(fields.get(name), str):
            raise ClaimError(f"{where}: {name} must be a text, got {fields.get(name)!r}.")
    if fields.get("is") not in get_args(Side):
        raise ClaimError(f"{where}: is must be one of {', '.join(get_args(Side))}, got {fields.get('is')!r}.")
    written = fields.get("metric", [])
    metrics = tuple(written) if isinstance(written, list) else (written,)
    if len(metrics) != METRICS[kind] or not all(isinstance(metric, str) for metric in metrics):
        raise ClaimError(f"{where}: metric must name {METRICS[kind]} of what was measured, got {written!r}.")
    margin, against = _number(where, fields, "margin"), _number(where, fields, "against", 0.0)
    size = _number(where, fields, "size") if "size" in fields else None
    if margin <= 0 or (size is not None and size <= 0):
        raise ClaimError(f"{where}: margin and size must be positive, got {margin} and {size}.")
    log = kind in ("slopes", "benchmark") or fields.get("log") is True
    if against and not log:
        raise ClaimError(f"{where}: against is for logarithms (log: true), slopes and benchmarks, got {against}.")
    floor = _number(where, fields, "floor") if "floor" in fields else None
    if floor is not None and kind != "contrast":
        raise ClaimError(f"{where}: floor is for a contrast, and this is a test of {kind}.")
    weights, detail = _weights(where, kind, fields)
    return ClaimTest(
        fields["study"], fields["says"], kind, weights, metrics, log, fields["is"], against, margin, size, detail, floor
    )


def _number(where: str, fields: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ClaimError(f"{where}: {name} must be a number, got {value!r}.")
    return float(value)


def _weights(where: str, kind: Kind, fields: Mapping[str, Any]) -> tuple[dict[str, float], str]:
    """Return the weight of each method or pattern, and the detail of a test."""
    written = fields[kind]
    if kind == "benchmark":
        return {}, str(written)
    if kind == "correlation":
        if written not in ("within", "across"):
            raise ClaimError(f"{where}: correlation must be within or across, got {written!r}.")
        return {str(fields.get("of", "*")): 1.0}, str(written)
    if kind in ("contrast", "robustness"):
        given = mapping(f"{where}, {kind}", written)
        return {method: _number(f"{where}, {kind}", given, method) for method in given}, ""
    if not isinstance(written, list) or len(written) not in (1, 2):
        raise ClaimError(f"{where}: slopes must list the ranks of one or two methods, got {written!r}.")
    weights: dict[str, float] = {}
    for sign, ranks in zip((1, -1), written, strict=False):
        given = mapping(f"{where}, slopes", ranks)
        if len(given) < 2:
            raise ClaimError(f"{where}: a slope needs two ranks or more, got {ranks!r}.")
        logs = np.log([_number(f"{where}, slopes", given, method) for method in given])
        centred = logs - logs.mean()
        shares = centred / (centred**2).sum()
        weights |= {method: sign * float(share) for method, share in zip(given, shares, strict=True)}
    return weights, ""
