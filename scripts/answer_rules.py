"""Counts how many of the gold answers of GSM8K and MATH each rule of ``cera.evaluation.answers`` changes.

    CERA_DATA_DIR=../shared/data python scripts/answer_rules.py

A rule for what answers are made of (spelled-out numbers, ratios) is worth its place if it concerns one answer in a
thousand. Rules for notation are judged by what models write, which these answers do not show: many of them are at zero.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

from cera.cli.tables import table
from cera.evaluation.answers import extract
from cera.evaluation.answers.labels import same_option, same_time
from cera.evaluation.answers.notation import GROUPS, normalize, plain
from cera.evaluation.answers.numbers import same_in_base

FILES = ("gsm8k/train.jsonl", "gsm8k/test.jsonl", "math/math500.jsonl", "math/problems_7500.jsonl")


def gold_answers(folder: Path) -> list[str]:
    """Return the final answers of all files; they are marked in all solutions, and bare in problems_7500.jsonl."""
    answers = []
    for name in FILES:
        for line in (folder / name).open(encoding="utf-8"):
            text = json.loads(line)["answer"]
            extraction = extract(text)
            is_marked = extraction is not None and extraction.extracted_by != "last number"
            answers.append(extraction.answer if extraction and is_marked else text)
    return [answer for answer in answers if answer]


def count(answers: list[str]) -> Counter[str]:
    """Return how many answers each rule changes, and how many are of each kind that is compared in its own way."""
    counts: Counter[str] = Counter()
    for answer in answers:
        text = answer.strip()
        for group in GROUPS:
            for rule in group.rules:
                rewritten = rule.apply(text)
                counts[rule.purpose] += rewritten != text
                text = rewritten
        text = normalize(answer)
        is_time = same_time(text, text) is not None
        counts["Compared as an option of the question."] += same_option(text, text) is not None
        counts["Compared as a time of the day."] += is_time
        counts["Compared as a number in a base."] += same_in_base(plain(text), plain(text)) is not None
        counts["A ratio, compared as it is written."] += ":" in text and not is_time
        counts["One word, compared as it is written."] += plain(text).isalpha() and len(plain(text)) > 2
    return counts


def main() -> int:
    """Print a table of all rules, in order."""
    folder = os.environ.get("CERA_DATA_DIR")
    if not folder:
        print("error: CERA_DATA_DIR must name the folder that holds gsm8k/ and math/", file=sys.stderr)
        return 2
    answers = gold_answers(Path(folder))
    counts = count(answers)
    purposes = [rule.purpose for group in GROUPS for rule in group.rules]
    purposes += [purpose for purpose in counts if purpose not in purposes]
    rows = [[purpose, counts[purpose], f"{counts[purpose] / len(answers):.3%}"] for purpose in purposes]
    print(table(rows, [f"rule ({len(answers)} answers)", "answers", "share"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
