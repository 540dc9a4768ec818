"""Compares a study with its repetition from scratch: do the repeated means lie inside the intervals that were reported?

for mean in repeated_means(Summary.read(reported), Summary.read(repeated)):
    print(mean.method, mean.metric, mean.inside)
"""

from dataclasses import dataclass

from cera.studies.axes import StudyError
from cera.studies.estimates import Estimate, method_mean
from cera.studies.summary import Summary


@dataclass(frozen=True)
class RepeatedMean:
    """A method's mean at its best rate, as reported and as repeated.

    Attributes:
        method: The method.
        metric: What is averaged.
        reported: The reported mean, with its interval.
        repeated: The mean of the repetition, at the rate that the repetition chose.
        same_rate: Whether the repetition chose the reported rate.
    """

    method: str
    metric: str
    reported: Estimate
    repeated: float
    same_rate: bool

    @property
    def inside(self) -> bool:
        """Whether the repeated mean lies inside the reported interval."""
        assert self.reported.low is not None
        assert self.reported.high is not None
        return self.reported.low <= self.repeated <= self.reported.high


def repeated_means(reported: Summary, repeated: Summary) -> list[RepeatedMean]:
    """Return each reported mean that has an interval beside that of the repetition.

    Args:
        reported: The study.
        repeated: The same study, run again.

    Raises:
        StudyError: The summaries are of different studies, or the repetition lacks a mean that was reported.
    """
    if reported.study != repeated.study:
        raise StudyError(f"{repeated.study} is no repetition of {reported.study}.")
    means = []
    for method in reported.methods:
        rates = [summary.choice(method).value for summary in (reported, repeated)]
        for metric in reported.metrics:
            first = method_mean(reported, method, rates[0], metric)
            if first is None or first.low is None:
                continue
            second = method_mean(repeated, method, rates[1], metric)
            if second is None:
                raise StudyError(f"the repetition of {reported.study} has no {metric} of {method}.")
            means.append(RepeatedMean(method, metric, first, second.mean, rates[0] == rates[1]))
    return means


def largest_difference(reported: Summary, repeated: Summary, metric: str) -> float:
    """Return the largest relative difference between a run's value and that of its repetition; 0 says bit for bit.

    Raises:
        StudyError: No run has the value in both.
    """
    first, second = ({run.name: run.values.get(metric) for run in each.runs} for each in (reported, repeated))
    pairs = [(before, second.get(name)) for name, before in first.items()]
    changes = [abs(after / before - 1) for before, after in pairs if before is not None and after is not None]
    if not changes:
        raise StudyError(f"no run of {reported.study} has {metric} in its repetition, too.")
    return max(changes)
