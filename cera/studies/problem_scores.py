"""How a run has solved each problem of a task, small enough for a summary: one or two characters a problem.

scores = ProblemScores.of_records(records)
scores.counts  # "0120..." of two samples each
scores.metric("pass@2")  # [0.0, 1.0, 1.0, 0.0, ...]
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cera.evaluation.pass_at_k import pass_at_k
from cera.evaluation.records import Record

BASE = 36
"""Base of the digits: 0 to 9, then A to Z."""

PARTIAL_CREDIT = BASE**2 - 1
"""Number of steps to which a score between 0 and 1 is rounded."""


@dataclass(frozen=True)
class ProblemScores:
    """The scores of one run on the problems of a task.

    Attributes:
        problems: Digest of the problems' keys in order: runs with the same one were asked the same.
        levels: Number of samples of each problem; with partial credit ``PARTIAL_CREDIT``.
        counts: Number of right samples of each problem, out of ``levels``, in base 36 with equally many digits; with
            partial credit the mean score, rounded to a multiple of ``1 / levels``.
    """

    problems: str
    levels: int
    counts: str

    @classmethod
    def of_records(cls, records: Sequence[Record]) -> "ProblemScores | None":
        """Return the scores of records; ``None`` if their problems have different numbers of samples."""
        samples = {len(record["correct"]) for record in records}
        if len(samples) != 1 or max(samples) > PARTIAL_CREDIT:
            return None
        if all(isinstance(correct, bool) for record in records for correct in record["correct"]):
            levels = max(samples)
            counts = [sum(record["correct"]) for record in records]
        else:
            levels = PARTIAL_CREDIT
            counts = [round(levels * float(np.mean(record["correct"]))) for record in records]
        width = len(np.base_repr(levels, BASE))
        keys = json.dumps([record["key"] for record in records])
        digits = "".join(np.base_repr(count, BASE).rjust(width, "0") for count in counts)
        return cls(hashlib.sha256(keys.encode()).hexdigest()[:16], levels, digits)

    def metric(self, name: str) -> np.ndarray | None:
        """Return the score of each problem, (problems,) fp64 in [0, 1]; ``None`` if these do not tell the metric.

        Args:
            name: ``"pass@K"``, or ``"score"`` for the mean over samples.
        """
        width = len(np.base_repr(self.levels, BASE))
        counts = np.array([int(self.counts[i : i + width], BASE) for i in range(0, len(self.counts), width)])
        if name == "score":
            return counts / self.levels
        k = name.removeprefix("pass@")
        if self.levels == PARTIAL_CREDIT or k == name or not k.isdigit():
            return None
        return np.asarray(pass_at_k(self.levels, counts, int(k)))
