"""Rank correlations of what studies measure: against scipy's, and what counts once, or not at all."""

from dataclasses import replace

import numpy as np
import pytest
from made_summaries import RATES, run, synthetic
from scipy import stats

from cera.studies.axes import StudyError
from cera.studies.correlation import correlation, method_points
from cera.studies.correlation_figure import correlation_figure
from cera.studies.summary import Summary

METRICS = ("effective_rank", "held_out_perplexity")


def drawn(methods: int = 8, seeds: int = 2, number: int = 0) -> Summary:
    """Methods that differ in a direction in which the loss falls, whose runs differ in one in which it rises."""
    generator = np.random.default_rng(number)
    runs = []
    for index in range(methods):
        for rate in RATES:
            for seed in range(seeds):
                step = generator.normal()
                values = {
                    "perplexity": 2.0 + (rate != RATES[1]),
                    "effective_rank": 50.0 + 10 * index + step,
                    "held_out_perplexity": 90.0 - 10 * index + step + 0.3 * generator.normal(),
                }
                runs.append(run(f"m{index}", rate, seed, values))
    return synthetic(runs)


def test_two_values_alone_are_no_order() -> None:
    summary = drawn(seeds=1)
    for distinct, expected in ((2, False), (3, True)):
        sizes = {name: 100 + index % distinct for index, name in enumerate(summary.methods)}
        sized = replace(summary, runs=tuple(replace(each, parameters=sizes[each.method]) for each in summary.runs))
        found = correlation([sized], ("parameters", "held_out_perplexity"), "across")
        assert (found is not None) == expected


def test_each_way_is_scipys_of_its_points() -> None:
    """Across methods the correlation is negative and within them positive, as in Simpson's paradox."""
    summary = drawn()
    points = {
        name: np.array([[each.values[metric] for metric in METRICS] for each in summary.runs if each.method == name])
        for name in summary.methods
    }
    found = {over: correlation([summary], METRICS, over) for over in ("across", "within", "runs")}
    at_best = [
        np.mean(
            [
                [each.values[metric] for metric in METRICS]
                for each in summary.runs
                if each.method == name and each.numbers["learning_rate"] == RATES[1]
            ],
            axis=0,
        )
        for name in summary.methods
    ]
    expected = {
        "across": stats.spearmanr(at_best).statistic,
        "within": np.mean([stats.spearmanr(each).statistic for each in points.values()]),
        "runs": stats.spearmanr(np.concatenate(list(points.values()))).statistic,
    }
    for over, estimate in found.items():
        assert estimate is not None
        assert estimate.mean == pytest.approx(expected[over])
        assert estimate.seeds == 8
        assert estimate.low <= estimate.high
    assert found["across"].mean < -0.9 < 0.5 < found["within"].mean


def test_runs_that_studies_share_count_once() -> None:
    """A study twice says no more than once; more runs of a method, at other seeds, do."""
    summary = drawn()
    twice = [summary, replace(summary, study="copy")]
    for over in ("across", "within", "runs"):
        assert correlation(twice, METRICS, over) == correlation([summary], METRICS, over)
    more = drawn(seeds=3)
    extended = [summary, more]
    assert correlation(extended, METRICS, "runs") != correlation([summary], METRICS, "runs")


def test_a_method_with_copied_runs_at_its_best_rate_is_no_further_method() -> None:
    """The same method with more seeds is not a second sample of a method."""
    summary = drawn(seeds=3)
    fewer = replace(summary, runs=tuple(each for each in summary.runs if each.labels["seed"] != "seed2"))
    found = list(method_points([fewer, summary], METRICS))
    assert [each.best is None for each in found] == [False] * 8 + [True] * 8
    assert [len(each.runs) for each in found] == [6] * 8 + [3] * 8


def test_runs_without_a_value_do_not_count() -> None:
    """A diverged run and one without the metric are as if they were not there."""
    summary = drawn()
    spoilt = [
        replace(each, state="diverged") if each.labels["seed"] == "seed1" else each
        for each in summary.runs
        if each.labels["seed"] == "seed1"
    ]
    kept = [each for each in summary.runs if each.labels["seed"] != "seed1"]
    bare = run("bare", RATES[0], 0, {"perplexity": 2.0})
    assert correlation([synthetic([*kept, *spoilt, bare])], METRICS, "runs") == correlation(
        [synthetic(kept)], METRICS, "runs"
    )


def test_parameters_are_a_value_of_a_run() -> None:
    """A perfect order by size is found."""
    runs = [
        replace(run(f"m{i}", RATES[0], 0, {"perplexity": 2.0, "held_out_perplexity": 9.0 - i}), parameters=100 * i)
        for i in range(1, 7)
    ]
    estimate = correlation([synthetic(runs)], ("parameters", "held_out_perplexity"), "across")
    assert estimate is not None
    assert estimate.mean == pytest.approx(-1)


def test_too_few_methods_and_other_ways() -> None:
    assert correlation([drawn(methods=3)], METRICS, "across") is None
    assert correlation([drawn()], METRICS, "across", pattern="m[01]") is None
    with pytest.raises(ValueError, match="across, within, runs"):
        correlation([drawn()], METRICS, "between")


def test_the_figure_has_each_run_once_and_says_what_it_leaves_out() -> None:
    summary = drawn()
    figure = correlation_figure([summary], METRICS, {"m0": "first", "*": "others"}, above=80.0)
    (panel,) = figure.axes
    offsets = [len(each.get_offsets()) for each in panel.collections]
    low = sum(each.values["held_out_perplexity"] <= 80 for each in summary.runs)
    assert sum(offsets) == low + len(summary.methods)
    assert f"{len(summary.runs) - low} above 80 are not drawn" in panel.get_title()
    with pytest.raises(StudyError, match="m1 of tunnel_made"):
        correlation_figure([summary], METRICS, {"m0": "first"})
    with pytest.raises(StudyError, match="auc_90"):
        correlation_figure([summary], ("auc_90", METRICS[1]), {"*": "all"})
