"""Fuzzed answers and problem rows: none hangs, and none ends in another exception than the documented one.

A quick slice of the seeds runs by default, and all of them as slow tests.
"""

# ruff: noqa: RUF001  (typographic characters are a part of the fuzz)

import json
import random
import time

import pytest

from cera.data import ChatDataset, DataError
from cera.evaluation.answers import extract, judge
from cera.evaluation.evaluate import score_samples
from cera.evaluation.fields import RECORD, WHOLE_RECORD, check_fields, parse_object
from cera.evaluation.generation import Sample
from cera.evaluation.prompts import Prompt
from cera.evaluation.tasks import GSM8K, MATH, MATH500, Chats, GSMSymbolic
from cera.evaluation.tasks.logistic_map import parse
from cera.models.generate import encode

PER_SEED = 50
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 14))]
SECONDS = 5.0
"""Wall-clock time of one item, beyond the processor time that a comparison may take; hanging is far above it."""

LATEX = r"""
\boxed{ \fbox{ \frac{1}{2} \frac \sqrt{ \sqrt[3]2 \text{ \left( \right) \begin{pmatrix} \end{pmatrix} \\ \infty \pi
\{ \} \cdot \times10^{ \circ \cup \in \pm \le \overline{3} \sin \log_2 \int_0^1 \sum_{k=1}^{9} 9^9^9 10! 101_2 x_1=0.84
"""
COLUMNS = "question answer problem solution level subject type unique_id messages conversations"
PIECES = [
    *"{}()[]$^_\\=<>|,.:;%&*/+-~!?'\"`#\n\t 0123456789xyn", *"½⅓２−–×√π∞°€∪∈⁶₁。", "\x00", "\ud800", "\u2028", "😀",
    *LATEX.split(), "####", "\n#### ", "The answer is ", "Answer: ", "**", "12 500", "1,234", "2 1/2", "2:3",
    "3:45 p.m.",
    "0.333333", "1e9", "forty-two ", "one hundred ", " and ", " or ", " cm^2", " miles per hour", " percent", "$5",
    "x_1 = 0.84 ", "x[2] -> ", "| 1 | 0.5 |\n", "1. ", "Step 1: ", "(A)", "None",
]  # fmt: skip


def fuzzed_text(rng: random.Random) -> str:
    """Return pieces in random order; sometimes one of them is repeated or nested very often."""
    text = "".join(rng.choices(PIECES, k=rng.randrange(1, 40)))
    kind = rng.randrange(8)
    if kind == 0:
        return text + rng.choice(PIECES) * rng.choice([50, 1000, 20_000])
    if kind == 1:
        depth = rng.choice([20, 500, 5000])
        opening, closing = rng.choice(
            [("{", "}"), ("(", ")"), ("[", "]"), (r"\frac{1}{", "}"), (r"\boxed{", "}"), ("$", "$")]
        )
        return text + opening * depth + rng.choice(PIECES) + closing * (depth - rng.randrange(2))
    if kind == 2:
        return "".join(map(chr, rng.choices(range(0xFFFF), k=rng.randrange(300))))
    return text


def fuzzed_value(rng: random.Random, depth: int = 0):
    """Return a JSON value of any kind; most often a text."""
    kind = rng.randrange(14)
    if kind < 6:
        return fuzzed_text(rng)
    if kind < 8 and depth < 4:
        return [fuzzed_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    if kind < 10 and depth < 4:
        names = ["role", "content", "from", "value", "question", "answer"]
        return {rng.choice(names): fuzzed_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return rng.choice([None, True, 0, -7, 3.5, 10**30, 10**400, float("inf"), float("nan"), "", "user", "assistant"])


def fuzzed_row(rng: random.Random) -> str:
    """Return a line of a file of problems: an object with some columns of the tasks, something else, or half a line."""
    columns = COLUMNS.split()
    row = {column: fuzzed_value(rng) for column in rng.sample(columns, k=rng.randrange(len(columns) + 1))}
    if rng.random() < 0.5:
        row |= {
            "question": fuzzed_text(rng),
            "problem": fuzzed_text(rng),
            "answer": rng.choice(["5", 5, fuzzed_text(rng)]),
        }
    if rng.random() < 0.3:
        row["messages"] = [{"role": role, "content": fuzzed_value(rng)} for role in ("user", "assistant")]
    line = json.dumps(row)
    kind = rng.randrange(10)
    if kind == 0:
        return line[: rng.randrange(len(line) + 1)]
    if kind == 1:
        return rng.choice(["[" * 100_000, "null", "7", '"text"', "[]", "{" * 2000, "\ufffd", " "])
    return line


def golds(rng: random.Random) -> list[str]:
    return [
        *rng.choices(["5", "-17", r"\frac{1}{2}", "x^2+1", "(1,2]", r"\{1,2\}", "3:45", "12500", "2 cm"], k=1),
        fuzzed_text(rng),
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_fuzzed_answers_are_judged(seed):
    rng = random.Random(seed)
    for _ in range(PER_SEED):
        text = fuzzed_text(rng)
        begin = time.monotonic()
        extraction = extract(text)
        assert extraction is None or extraction.answer
        assert all(isinstance(value, float) for value in parse(text, 0.4))
        for gold in golds(rng):
            verdict = judge(text, gold)
            assert verdict.answer or not verdict.correct
            assert (verdict.answer is None) == (verdict.extracted_by is None)
        assert time.monotonic() - begin < SECONDS, repr(text[:200])


def tasks() -> list:
    return [
        GSM8K("a.jsonl"),
        GSMSymbolic("a.jsonl"),
        MATH("a.jsonl"),
        MATH500("a.jsonl"),
        Chats(dataset=ChatDataset("a.jsonl")),
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_fuzzed_rows_are_problems_or_one_error(seed, tokenizer):
    rng = random.Random(1000 + seed)
    problems, errors = 0, []
    for _ in range(PER_SEED):
        row = {"text": fuzzed_row(rng)}
        for task in tasks():
            source = task.dataset if isinstance(task, Chats) else task
            source.load = lambda streaming=None, row=row: [row]
            begin = time.monotonic()
            try:
                [problem] = task.problems()
            except DataError as error:
                errors.append(str(error))
                continue
            problems += 1
            prompt = Prompt().render(problem.question, tokenizer)
            assert encode(tokenizer, prompt, 8192)
            record = score_samples(task, problem, prompt, [Sample(fuzzed_text(rng), 1, True)])
            check_fields(parse_object(json.dumps(record), ""), RECORD, {*WHOLE_RECORD} - {"seconds"}, "record")
            assert time.monotonic() - begin < SECONDS, row["text"][:200]
    assert min(problems, len(errors)) > PER_SEED / 4  # the fuzz reaches both
    assert all("\n" not in error and len(error) < 1000 for error in errors)
