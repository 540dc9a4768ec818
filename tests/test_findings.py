"""The page of findings: made from committed summaries alone, the same bytes each time."""

import re

import pytest
from conftest import REPOSITORY

from cera.studies.axes import StudyError
from scripts.findings import COMMITTED, PAGES, render, repository, template, write_committed_report


def test_the_committed_pages_and_figures_are_what_the_script_makes(tmp_path) -> None:
    for page in PAGES:
        made = render(template(page), repository(pictures=tmp_path))
        assert made == page.read_text(encoding="utf-8"), "run `python scripts/findings.py`"
    drawn = sorted(tmp_path.glob("*.png"))
    assert drawn
    for picture in drawn:
        assert picture.read_bytes() == (REPOSITORY / "docs" / "pictures" / picture.name).read_bytes(), picture.name


def test_the_committed_reports_are_what_the_script_makes(tmp_path) -> None:
    for summary in sorted((REPOSITORY / "results").glob("*/summary.json")):
        write_committed_report(summary, tmp_path)
        for name in COMMITTED:
            committed = summary.parent / name
            assert (tmp_path / name).read_bytes() == committed.read_bytes(), (
                f"run `python scripts/findings.py`: {committed}"
            )


def test_a_number_is_that_of_its_summary(tmp_path) -> None:
    calls = '{{ mean("tunnel_sanity", "full", "held_out_perplexity") }} {{ rate("tunnel_sanity", "full") }}'
    assert render(calls, repository(pictures=tmp_path)) == "1.5290 [1.5251, 1.5328] (n=3) 0.002"


def test_a_difference_has_two_digits_of_its_interval_and_its_seeds(tmp_path) -> None:
    call = '{{ difference("tunnel_sanity", "lora-r1", "full", "held_out_perplexity") }}'
    written = render(call, repository(pictures=tmp_path))
    assert re.fullmatch(r"\+0\.\d{3} \[\+0\.\d{3}, \+0\.\d{3}\] \(n=3\)", written), written


def test_a_difference_between_studies_is_that_within_one_where_they_share_the_runs(tmp_path) -> None:
    """``tunnel_fig3`` has copies of the runs of ``tunnel_fig1``."""
    within = '{{ difference("tunnel_fig3", "cera-r16", "lora-r16", "held_out_perplexity") }}'
    between = '{{ difference("tunnel_fig3", "cera-r16", "lora-r16", "held_out_perplexity", "tunnel_fig1") }}'
    other = '{{ difference("tunnel_fig3", "cera-r16", "lora-r4", "held_out_perplexity", "tunnel_fig1") }}'
    first, second, third = (render(call, repository(pictures=tmp_path)) for call in (within, between, other))
    assert first == second != third


def test_what_is_lost_over_rates_has_the_other_sign_the_other_way_round(tmp_path) -> None:
    calls = [f'{{{{ lost_difference("tunnel_fig2", {pair}) }}}}' for pair in ('"lora", "dora"', '"dora", "lora"')]
    first, second = (render(call, repository(pictures=tmp_path)).partition(" ")[0] for call in calls)
    assert float(first) == -float(second) != 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ('mean("tunnel_sanity", "dora", "perplexity")', "tunnel_sanity has no best rate of dora; its methods are full"),
        ('mean("tunnel_sanity", "full", "accuracy")', "no seed has a value"),
        ('runs("no_such_study")', "no_such_study"),
    ],
)
def test_what_a_summary_does_not_have_is_an_error(call, message, tmp_path) -> None:
    with pytest.raises((StudyError, ValueError), match=message):
        render("{{ " + call + " }}", repository(pictures=tmp_path))
