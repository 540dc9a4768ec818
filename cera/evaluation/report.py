"""Turns the records of an evaluation into the report that ``eval.json`` holds."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cera.evaluation.degenerate import degenerate_shares
from cera.evaluation.pass_at_k import pass_at_k
from cera.evaluation.records import Record
from cera.evaluation.statistics import mean_interval
from cera.evaluation.tasks import Task

MEAN_SCORE = "score"
"""The metric of tasks that give partial credit: the mean score of a problem's samples."""


def build_report(records: Sequence[Record], task: Task, pass_at: Sequence[int]) -> dict[str, Any]:
    """Return the report of an evaluation, as JSON values.

    Args:
        records: The record of each problem.
        task: The task, which may add metrics of its own.
        pass_at: The k of each pass@k.

    Returns:
        The numbers of ``problems`` and ``samples``; ``metrics`` with their 95% intervals, over all problems and in each
        of the ``groups``; how often each rule ``extracted`` the answer; the shares of degenerate samples and the
        accuracy of the others (``degenerate_shares``); the ``tokens`` and ``seconds`` that were spent; and the
        ``summary`` of a task that has one.
    """
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        for name, value in record["groups"].items():
            groups.setdefault(name, {}).setdefault(value, []).append(record)
    metrics = _metric_names(records, pass_at)
    report: dict[str, Any] = {
        "problems": len(records),
        "samples": sum(len(record["samples"]) for record in records),
        "metrics": _metrics(records, metrics),
        "groups": {
            name: {
                value: {"problems": len(members), **_metrics(members, metrics)}
                for value, members in sorted(values.items())
            }
            for name, values in sorted(groups.items())
        },
        "extracted": dict(Counter(rule or "none" for record in records for rule in record["how"])),
        **degenerate_shares(records),
        "tokens": sum(sum(record["tokens"]) for record in records),
        "seconds": sum(record["seconds"] for record in records),
    }
    if summary := task.summarize(records):
        report["summary"] = summary
    return report


def problem_scores(records: Sequence[Record], metric: str) -> np.ndarray:
    """Return the score of each problem, (problems,) fp64 in [0, 1].

    Args:
        records: The record of each problem.
        metric: ``"pass@K"``, or ``"score"`` for the mean over samples.
    """
    if metric == MEAN_SCORE:
        return np.array([float(np.mean(record["correct"])) for record in records])
    samples = np.array([len(record["correct"]) for record in records])
    correct = np.array([sum(record["correct"]) for record in records])
    return np.asarray(pass_at_k(samples, correct, int(metric.removeprefix("pass@"))))


def all_or_nothing(records: Sequence[Record]) -> bool:
    """Return whether every sample is either right or wrong, without partial credit."""
    return all(isinstance(correct, bool) for record in records for correct in record["correct"])


def _metric_names(records: Sequence[Record], pass_at: Sequence[int]) -> list[str]:
    """Return pass@k for each k, or the mean score where there is partial credit, for which pass@k is not defined."""
    return [f"pass@{k}" for k in pass_at] if all_or_nothing(records) else [MEAN_SCORE]


def _metrics(records: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
    metrics = {}
    for name in names:
        scores = problem_scores(records, name)
        interval = mean_interval(scores)
        metrics[name] = {"value": float(scores.mean()), "low": interval.low, "high": interval.high}
    return metrics
