"""The page of serving: made from committed results alone, the same bytes each time."""

import copy
import json

from scripts import serving_page


def inputs() -> list[dict]:
    return [json.loads((serving_page.RESULTS / name).read_text()) for name in serving_page.INPUTS]


def test_the_committed_page_is_what_the_script_makes() -> None:
    assert serving_page.page(*inputs()) == serving_page.PAGE.read_text(), "run `python scripts/serving_page.py`"


def test_a_missed_goal_is_named_with_its_profile() -> None:
    measured, gsm8k, demo = inputs()
    for part in (measured["layer"], measured["engine-64"]):
        for found in part["ratios"].values():
            found["CeRA / LoRA"]["median"] = 1.0
    reached = serving_page.page(measured, gsm8k, demo)
    assert "the profile of one update" not in reached
    measured = copy.deepcopy(measured)
    name = next(iter(measured["layer"]["ratios"]))
    measured["layer"]["ratios"][name]["CeRA / LoRA"]["median"] = 1.5
    missed = serving_page.page(measured, gsm8k, demo)
    assert "1.5 (" in missed
    assert f"not {serving_page.GOAL})" in missed
    assert "the profile of one update" in missed
    assert "`silu`" in missed


def test_answers_that_differ_are_listed() -> None:
    measured, gsm8k, demo = inputs()
    gsm8k["differences"] = [{"key": "gsm8k/7", "verdicts": [True, False], "token": 3, "distance": 2.5e-6}]
    assert "- `gsm8k/7`, token 3: log-probabilities 2.5e-06 apart" in serving_page.page(measured, gsm8k, demo)
