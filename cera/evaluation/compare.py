"""Compares two evaluations of the same problems, problem by problem."""

import glob
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any

from cera.evaluation.fields import REPORT, RecordError, check_fields
from cera.evaluation.records import Record, read
from cera.evaluation.report import MEAN_SCORE, all_or_nothing, problem_scores
from cera.evaluation.statistics import McNemar, PairedDifference, mcnemar, paired_difference
from cera.foreign_files import read_json_object
from cera.runs.checkpoints import differences


@dataclass(frozen=True)
class MetricComparison:
    """One metric of two evaluations.

    Attributes:
        metric: Its name, such as ``"pass@1"``.
        a: The mean of the first, in [0, 1].
        b: The mean of the second.
        difference: b - a, with its interval and p-value.
    """

    metric: str
    a: float
    b: float
    difference: PairedDifference


@dataclass(frozen=True)
class EvaluationComparison:
    """Two evaluations of the same problems.

    Attributes:
        problems: Number of problems.
        metrics: Each metric that both have.
        mcnemar: McNemar's test; ``None`` if a problem has several answers or partial credit.
    """

    problems: int
    metrics: list[MetricComparison]
    mcnemar: McNemar | None


def find_results(folder: Path, name: str | None) -> Path:
    """Return the folder of finished results: ``folder`` itself, or the one in its ``eval``.

    Args:
        folder: A run directory, or a folder of results.
        name: Name of the evaluation; ``None`` if the run has only one.

    Raises:
        RecordError: There is none, or several and no ``name``; or ``name`` is a path.
    """
    if name is not None and (name in ("", ".", "..") or "/" in name):
        raise RecordError(f"--name must be the name of an evaluation, got {name!r}.")
    if (folder / "eval.json").is_file():
        return folder
    matches = sorted(path.parent for path in folder.glob(f"eval/{glob.escape(name) if name else '*'}/eval.json"))
    if len(matches) != 1:
        names = ", ".join(path.name for path in matches) or "none"
        raise RecordError(f"{folder}/eval holds {names} as finished evaluations{'' if name else '; give --name'}.")
    return matches[0]


def read_results(folder: Path) -> tuple[dict[str, Any], list[Record]]:
    """Return the report and the records of finished results.

    Raises:
        RecordError: A file is broken, a field is missing or of another type, or the records do not have the samples
            that a metric of the report needs.
    """
    file = folder / "eval.json"
    report = read_json_object(file)
    check_fields(report, REPORT, REPORT.keys(), str(file))
    records = read(folder / "records.jsonl", ("gold", "correct"))
    if not records:
        raise RecordError(f"{folder / 'records.jsonl'} has no records.")
    fewest = min(len(record["correct"]) for record in records)
    for metric in report["metrics"]:
        match = re.fullmatch(r"pass@([1-9]\d{0,5})", metric)
        if metric != MEAN_SCORE and not match:
            raise RecordError(f"{file}: a metric must be pass@K or {MEAN_SCORE}, got {short_repr(metric)}.")
        if match and int(match[1]) > fewest:
            raise RecordError(f"{file}: {metric} needs {match[1]} samples of each problem; a record has {fewest}.")
        if match and not all_or_nothing(records):
            raise RecordError(f"{file}: {metric} needs records whose correct is true or false for each sample.")
    return report, records


def compare(a: Sequence[Record], b: Sequence[Record], metrics: Sequence[str]) -> EvaluationComparison:
    """Compare two evaluations: each metric with the interval of the difference, and McNemar's test.

    Args:
        a: Records of the first.
        b: Records of the second, of the same problems in any order.
        metrics: Names of the metrics, such as ``"pass@1"``.

    Raises:
        RecordError: The problems or their gold answers are not the same.
    """
    gold_a, gold_b = ({record["key"]: record["gold"] for record in records} for records in (a, b))
    if gold_a != gold_b:
        differing = sorted(key for key in gold_a.keys() | gold_b.keys() if gold_a.get(key) != gold_b.get(key))
        raise RecordError(f"the two are not of the same problems: {len(differing)} differ, such as {differing[0]}.")
    by_key = {record["key"]: record for record in b}
    b = [by_key[record["key"]] for record in a]
    compared = []
    for metric in metrics:
        scores_a, scores_b = problem_scores(a, metric), problem_scores(b, metric)
        difference = paired_difference(scores_a, scores_b)
        compared.append(MetricComparison(metric, float(scores_a.mean()), float(scores_b.mean()), difference))
    single = all(len(record["correct"]) == 1 for record in [*a, *b]) and all_or_nothing([*a, *b])
    test = mcnemar(problem_scores(a, "pass@1"), problem_scores(b, "pass@1")) if single else None
    return EvaluationComparison(len(a), compared, test)


def differing_settings(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return a line for each setting, beside the adapter, in which two evaluations differ."""
    texts = [
        json.dumps({key: value for key, value in settings.items() if key not in ("adapter", "checkpoint")})
        for settings in (a, b)
    ]
    return differences(*texts)
