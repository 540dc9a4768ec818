"""Random texts and values: pieces of mathematics, markup and JSON in any order, of any length and depth."""

# ruff: noqa: RUF001  (typographic characters are a part of the fuzz)

import random
from typing import Any

LATEX = r"""
\boxed{ \fbox{ \frac{1}{2} \frac \sqrt{ \sqrt[3]2 \text{ \left( \right) \begin{pmatrix} \end{pmatrix} \\ \infty \pi
\{ \} \cdot \times10^{ \circ \cup \in \pm \le \overline{3} \sin \log_2 \int_0^1 \sum_{k=1}^{9} 9^9^9 10! 101_2 x_1=0.84
"""
PIECES = [
    *"{}()[]$^_\\=<>|,.:;%&*/+-~!?'\"`#\n\t 0123456789xyn", *"½⅓２−–×√π∞°€∪∈⁶₁。", "\x00", "\ud800", "\u2028", "😀",
    *LATEX.split(), "####", "\n#### ", "The answer is ", "Answer: ", "**", "12 500", "1,234", "2 1/2", "2:3",
    "3:45 p.m.",
    "0.333333", "1e9", "forty-two ", "one hundred ", " and ", " or ", " cm^2", " miles per hour", " percent", "$5",
    "x_1 = 0.84 ", "x[2] -> ", "| 1 | 0.5 |\n", "1. ", "Step 1: ", "(A)", "None",
]  # fmt: skip


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 10**9, 10**30, -(10**9), 0.5, -0.5, 1e308, "", "x", "q_proj", ".*", "(", "[", "\0",
    [], [0], [1, 2], [-1], [10**9], ["q_proj"], ["q_proj", "x"], [None], [[0, 1]], [[]], ["\ud7ff" * 50],
    {}, {"q_proj": 2}, {"q_proj": "2"}, {"(": 2}, {"a": []}, {"q_proj": {}}, [[[[[[]]]]]], "CERA", "LORA", "VERA",
    "CAUSAL_LM", "SEQ_CLS", "../..", "/dev/zero", "package://a/b.gguf", "package:///", "a/b/c", "silu", "tanh", "pissa",
]  # fmt: skip
"""Values for a field of a configuration, most of which it should not have."""


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


def fuzzed_value(rng: random.Random, depth: int = 0) -> Any:
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
