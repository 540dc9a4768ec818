"""Whether a repetition's means lie inside the reported intervals, on synthetic studies."""

from dataclasses import replace

import pytest
from made_summaries import normal

from cera.studies.axes import StudyError
from cera.studies.repetition import largest_difference, repeated_means

METHODS = {"lora": 0.0, "cera": -0.05}


def test_the_same_summary_is_inside_and_differs_by_nothing() -> None:
    study = normal(METHODS, 0.01, 5)
    means = repeated_means(study, study)
    assert {(mean.method, mean.metric) for mean in means} >= {("lora", "held_out_perplexity"), ("cera", "perplexity")}
    assert all(mean.inside and mean.same_rate for mean in means)
    assert largest_difference(study, study, "perplexity") == 0


def test_another_draw_of_the_same_study_is_near_and_a_shifted_one_is_outside() -> None:
    """The negative control: a method that is a tenth of a nat worse in the repetition is not inside."""
    study = normal(METHODS, 0.01, 5)
    shifted = normal({**METHODS, "cera": 0.05}, 0.01, 5)
    inside = {mean.method: mean.inside for mean in repeated_means(study, shifted)}
    assert inside == {"lora": True, "cera": False}
    assert largest_difference(study, shifted, "perplexity") == pytest.approx(0.105, abs=0.001)  # exp(0.1) - 1


def test_another_choice_of_the_rate_is_recorded() -> None:
    study = normal(METHODS, 0.01, 5)
    runs = tuple(
        replace(run, values={**run.values, "perplexity": 1.0}) if run.numbers["learning_rate"] == 0.1 else run
        for run in study.runs
    )
    means = repeated_means(study, replace(study, runs=runs))
    assert not any(mean.same_rate for mean in means)
    assert not any(mean.inside for mean in means)


def test_a_repetition_of_something_else_or_of_a_part_is_an_error() -> None:
    study = normal(METHODS, 0.01, 5)
    with pytest.raises(StudyError, match="other is no repetition of tunnel_made"):
        repeated_means(study, replace(study, study="other"))
    with pytest.raises(StudyError, match="has no perplexity of cera"):
        repeated_means(study, normal({"lora": 0.0}, 0.01, 5))
    with pytest.raises(StudyError, match="no run of tunnel_made has accuracy"):
        largest_difference(study, study, "accuracy")
