"""The figure of several values of each method: what it draws is the tables' means and intervals."""

import pytest
from made_summaries import run, synthetic

from cera.studies.axes import StudyError
from cera.studies.estimates import method_mean
from cera.studies.profile_figure import profile_figure

METRICS = {"easy": "loss_1", "hard": "loss_2"}


def summary():
    runs = []
    for seed in range(3):
        for rate in (0.001, 0.01):
            shared = {"perplexity": 2 - rate + 0.01 * seed}
            runs.append(run("cera", rate, seed, {**shared, "loss_1": 0.1 * seed + rate, "loss_2": 1.0 + seed}))
            runs.append(run("lora", rate, seed, shared))
    return synthetic(runs)


def test_means_and_intervals_at_the_best_rate_are_drawn() -> None:
    made = summary()
    (panel,) = profile_figure(made, METRICS, x="difficulty", y="loss").axes
    (bars,) = panel.containers
    assert bars.get_label() == "cera", "a method without the values is left out"
    line, _, (lengths,) = bars.lines
    estimates = [method_mean(made, "cera", "lr0.01", metric) for metric in METRICS.values()]
    assert list(line.get_xdata()) == [0, 1]
    assert line.get_ydata() == pytest.approx([0.11, 2.0])
    ends = [(segment[0][1], segment[1][1]) for segment in lengths.get_segments()]
    assert ends == [pytest.approx((estimate.low, estimate.high)) for estimate in estimates]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["easy", "hard"]
    assert "3 seeds" in panel.get_title()


def test_values_that_no_method_has_are_an_error() -> None:
    with pytest.raises(StudyError, match="no method of tunnel_made has any of loss_9"):
        profile_figure(summary(), {"x": "loss_9"})
