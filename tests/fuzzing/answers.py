"""Answers of a model: each task gives a verdict on each text."""

import random
from pathlib import Path

from cera.evaluation.answers import extract, judge
from cera.evaluation.tasks import GSM8K, MATH, MATH500, Chats, GSMSymbolic, LogisticMap, Problem
from cera.evaluation.tasks.logistic_map import parse
from fuzzing.texts import fuzzed_text

GOLDS = ["5", "-17", r"\frac{1}{2}", "x^2+1", "(1,2]", r"\{1,2\}", "3:45", "12500", "2 cm"]


class Answers:
    """Lets the tasks score a random text.

    Args:
        base: Not used.
        folder: Not used.
    """

    longest_seconds = 20.0
    """Includes the processor time that a comparison may take, on a machine with other work."""

    def __init__(self, base: str, folder: Path) -> None:
        self.trajectories = list(LogisticMap(limit=4).problems())

    def __call__(self, rng: random.Random) -> str:
        """Score a random text against a random gold answer; there is no error."""
        text = fuzzed_text(rng)
        extraction = extract(text)
        assert extraction is None or extraction.answer
        assert all(isinstance(value, float) for value in parse(text, 0.4))
        for gold in (rng.choice(GOLDS), fuzzed_text(rng)):
            verdict = judge(text, gold)
            assert verdict.answer or not verdict.correct
            assert (verdict.answer is None) == (verdict.extracted_by is None)
        gold = rng.choice(GOLDS)
        for task in (GSM8K("a.jsonl"), GSMSymbolic("a.jsonl"), MATH("a.jsonl"), MATH500("a.jsonl"), Chats()):
            assert isinstance(task.score(text, Problem("1", "?", gold)).correct, bool)
        task = LogisticMap(limit=4)
        assert isinstance(task.score(text, rng.choice(self.trajectories)).correct, bool)
        return ""
