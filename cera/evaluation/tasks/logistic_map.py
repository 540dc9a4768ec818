"""Does a model iterate the logistic map ``x' = r x (1 - x)``, or fall into repeating a value (paper Table 2)?

    python -m cera.evaluation.tasks.logistic_map --adapter runs/smol_cera

A model is asked for rounded values, so its trajectory may leave the true one without a mistake: see ``tolerances``.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cera.data.chat import render
from cera.evaluation.generation import Sampling, TransformersBackend
from cera.evaluation.statistics import Interval, bootstrap
from cera.models.backbone import BackboneError, load_model, load_tokenizer
from cera.runs.checkpoints import replacing
from cera.runs.saved_adapter import AdapterError, SavedAdapter

LARGEST_TOLERANCE = 0.05
"""A step that honest rounding may move further than this, in a range of [0, 1], cannot be told right from wrong."""
SLACK = 1e-9
"""For fp64's own rounding."""
COLLAPSE = 3
"""So many times the same value in a row."""


@dataclass(frozen=True)
class Problem:
    """A trajectory to compute.

    Args:
        r: Growth rate, in [2.5, 4].
        x0: Where it starts, in (0, 1).
        steps: How many values are asked for.
        decimals: Places that each value is rounded to, 2 to 12.

    Raises:
        ValueError: A number is out of its range.
    """

    r: float
    x0: float
    steps: int = 10
    decimals: int = 4

    def __post_init__(self) -> None:
        if not 2.5 <= self.r <= 4:
            raise ValueError(f"r must be in [2.5, 4], got {self.r}.")
        if not 0 < self.x0 < 1:
            raise ValueError(f"x0 must be in (0, 1), got {self.x0}.")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}.")
        if not 2 <= self.decimals <= 12:
            raise ValueError(f"decimals must be in [2, 12], got {self.decimals}.")

    @property
    def question(self) -> str:
        """The prompt."""
        return (
            f"The logistic map is x_(n+1) = r * x_n * (1 - x_n). With r = {self.r} and x_0 = {self.x0}, compute the "
            f"next {self.steps} values. Round each to {self.decimals} decimal places and continue with the rounded "
            f"value. Write each step on its own line, such as:\nx_1 = {0.5:.{self.decimals}f}"
        )

    @property
    def answer(self) -> str:
        """The worked steps, rounded as the question asks."""
        lines, x = [], f"{self.x0}"
        for step in range(1, self.steps + 1):
            value = f"{_map(self.r, float(x)):.{self.decimals}f}"
            lines.append(f"x_{step} = {self.r} * {x} * (1 - {x}) = {value}")
            x = value
        return "\n".join(lines)


@dataclass(frozen=True)
class Score:
    """How far an answer goes right.

    Attributes:
        steps: Values asked for.
        judged: Of these, the first ones that rounding leaves close enough to the truth to be judged.
        stated: Values that the answer has.
        correct: Judged steps on the true trajectory before the first that is not, or is missing.
        consistent: Steps, of all asked for, that follow from the answer's own value before.
        collapsed: Whether a value is repeated three times in a row where the map does not say so and the truth moves.
    """

    steps: int
    judged: int
    stated: int
    correct: int
    consistent: int
    collapsed: bool

    @property
    def all_right(self) -> bool:
        """Whether every judged step is right."""
        return self.correct == self.judged


@dataclass(frozen=True)
class Rate:
    """A mean over problems and its interval."""

    mean: float
    interval: Interval


def trajectory(r: float, x0: float, steps: int) -> list[float]:
    """The true values x_1 ... x_steps, computed in fp64.

    Args:
        r: Growth rate.
        x0: Where it starts; not in the result.
        steps: How many.
    """
    values, x = [], x0
    for _ in range(steps):
        x = _map(r, x)
        values.append(x)
    return values


def tolerances(r: float, x0: float, steps: int, decimals: int) -> list[float]:
    """How far from the truth each step may be if every step was rounded to ``decimals`` places, and nothing else.

    An error e before a step is at most ``r e (|1 - 2x| + e)`` after it, as ``f(x + e) - f(x) = r e (1 - 2x - e)``; to
    which the step adds half a unit of the last place. Where the map is chaotic the bound grows exponentially.

    Args:
        r: Growth rate.
        x0: Where it starts.
        steps: How many.
        decimals: Places.

    Returns:
        A bound for each of x_1 ... x_steps, at most 1: all values are in [0, 1].
    """
    bounds, error = [], 0.0
    for x in [x0, *trajectory(r, x0, steps)][:-1]:
        error = min(1.0, r * error * (abs(1 - 2 * x) + error) + _half_unit(decimals))
        bounds.append(error)
    return bounds


def problems(rs: Sequence[float], x0s: Sequence[float], steps: int = 10, decimals: int = 4) -> list[Problem]:
    """A problem for each r and each x0.

    Raises:
        ValueError: A number is out of the range that ``Problem`` gives.
    """
    return [Problem(r, x0, steps, decimals) for r in rs for x0 in x0s]


def random_problems(count: int, seed: int = 0, steps: int = 10, decimals: int = 4) -> list[Problem]:
    """Different problems with r in [2.5, 4] and x0 in [0.05, 0.95], both of two decimals.

    Args:
        count: How many, at most 13,741, which is all of them.
        seed: Another one gives others.
        steps: As for ``Problem``.
        decimals: As for ``Problem``.

    Raises:
        ValueError: A number is out of its range.
    """
    rs, x0s = range(250, 401), range(5, 96)
    if not 1 <= count <= len(rs) * len(x0s):
        raise ValueError(f"The number of problems must be in [1, {len(rs) * len(x0s)}], got {count}.")
    chosen = np.random.default_rng(seed).choice(len(rs) * len(x0s), size=count, replace=False)
    places = (divmod(int(number), len(x0s)) for number in chosen)
    return [Problem(rs[i] / 100, x0s[j] / 100, steps, decimals) for i, j in places]


def rows(of: Sequence[Problem]) -> list[dict[str, str]]:
    """The problems as training data: ``question`` and ``answer``."""
    return [{"question": problem.question, "answer": problem.answer} for problem in of]


_DECORATION = r"(?:[\s*$&)}]|\\\)|\\\])*"
_MARK = re.compile(
    rf"(?<![A-Za-z0-9\\])(?:(?P<step>step)\s?#?|x\s?_?)[{{(]?(?P<index>\d{{1,5}})(?!\d){_DECORATION}"
    r"(?:=|:|≈|\\approx)",
    re.IGNORECASE,
)
_CHAIN = re.compile(r"=|:|≈|→|\\approx")
_CONTINUATION = re.compile(r"[\s$&]*(?:=|≈|\\approx)")
_NUMBER = re.compile(
    r"[\s*$&{(\[\\]*(?:(?:boxed|text|mathbf)\{)?\s*(?P<number>-?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,3})?)"
    r"(?![\w(]|\.\d)(?!\s*(?:[-+*/^\u00d7\u00b7x]\s*[\d.(x]|\\cdot|\\times))",
    re.IGNORECASE,
)
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉\u2212", "0123456789-")


def parse(text: str) -> list[float]:
    """The values x_1, x_2, ... that an answer states, up to the first that is missing.

    A statement is ``x_1``, ``x1``, ``x_{1}``, ``x₁`` or ``Step 1`` with ``=``, ``:`` or ``≈`` after it; its value is
    the last link of the chain, which may go on over lines that begin with ``=``. Of two statements of one step the
    first counts, and one of x before one of ``Step``. Takes time linear in the text.

    Args:
        text: The answer.
    """
    named: tuple[dict[int, float], dict[int, float]] = {}, {}  # by "Step 1", by "x_1"
    open_to: tuple[dict[int, float], int] | None = None  # the statement that a continuation belongs to
    for line in text.translate(_SUBSCRIPTS).splitlines():
        if open_to is not None and _CONTINUATION.match(line):
            value = _last_link(line)
            if value is not None:
                open_to[0][open_to[1]] = value
            continue
        for segment in re.split(r"[,;|]", line):
            mark = _MARK.search(segment)
            if mark is None:
                continue
            of, index = named[mark["step"] is None], int(mark["index"])
            if index in of:
                open_to = None
                continue
            open_to = of, index
            value = _last_link(segment[mark.end() :])
            if value is not None:
                of[index] = value
    stated = named[0] | named[1]
    values: list[float] = []
    while len(values) + 1 in stated:
        values.append(stated[len(values) + 1])
    return values


def score(values: Sequence[float], r: float, x0: float, decimals: int, steps: int | None = None) -> Score:
    """Judge an answer against the true trajectory.

    A step is right if it is within ``tolerances`` of the truth: honest rounding is never wrong. Steps are judged as
    long as the tolerance is at most ``LARGEST_TOLERANCE``.

    Args:
        values: What the answer states, from x_1 on.
        r: Growth rate.
        x0: Where it starts.
        decimals: Places that were asked for.
        steps: Values that were asked for, further ones do not count; ``None`` takes those that are stated.
    """
    steps = len(values) if steps is None else steps
    stated = list(values[:steps])
    truth, bounds = trajectory(r, x0, steps), tolerances(r, x0, steps, decimals)
    judged = _leading(bound <= LARGEST_TOLERANCE for bound in bounds)
    near = [abs(v - x) <= bound + SLACK for v, x, bound in zip(stated, truth, bounds, strict=False)]
    follows = _follows(stated, r, x0, decimals)
    return Score(
        steps=steps,
        judged=judged,
        stated=len(stated),
        correct=_leading(near[:judged]),
        consistent=sum(follows),
        collapsed=_collapse(stated, truth, follows, decimals) is not None,
    )


def summary(scores: Sequence[Score], level: float = 0.95, seed: int = 0) -> dict[str, Rate]:
    """Means over problems, with bootstrap intervals (``significance.bootstrap``).

    Args:
        scores: One for each problem.
        level: Of the intervals.
        seed: Of the resampling.

    Returns:
        ``steps_correct`` in steps; ``correct`` (share of the judged steps), ``all_right``, ``consistent`` (share of
        the steps asked for) and ``collapse`` in [0, 1].

    Raises:
        ValueError: There are no scores.
    """
    if not scores:
        raise ValueError("There must be at least one score.")
    longest = max(1, *(of.judged for of in scores))
    shares = {
        "correct": [of.correct / max(1, of.judged) for of in scores],
        "all_right": [float(of.all_right) for of in scores],
        "consistent": [of.consistent / max(1, of.steps) for of in scores],
        "collapse": [float(of.collapsed) for of in scores],
    }
    steps = bootstrap([of.correct / longest for of in scores], level, seed=seed)
    counted = Interval(steps.low * longest, steps.high * longest, level)
    return {"steps_correct": Rate(fmean(of.correct for of in scores), counted)} | {
        name: Rate(fmean(values), bootstrap(values, level, seed=seed)) for name, values in shares.items()
    }


def figure(answers: Sequence[tuple[Problem, Sequence[float]]], columns: int = 3) -> Figure:
    """True trajectories and the model's, a panel for each problem; a collapse is marked from where it begins.

    Args:
        answers: Problems and the values stated for each.
        columns: Panels in a row.

    Raises:
        ValueError: There are no answers.
    """
    if not answers:
        raise ValueError("There must be at least one answer to draw.")
    lines = -(-len(answers) // columns)
    made = Figure(figsize=(3.8 * columns, 2.6 * lines + 0.4), dpi=100, layout="constrained")
    axes = list(made.subplots(lines, columns, squeeze=False).flat)
    for ax, (problem, values) in zip(axes, answers, strict=False):
        _draw(ax, problem, values)
    for ax in axes[len(answers) :]:
        ax.set_axis_off()
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    made.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False)
    return made


def table(rates: dict[str, Rate]) -> str:
    """A row for each rate."""
    level = next(iter(rates.values())).interval.level
    head = f"{'':<14} {'mean':>7}   {f'{level:.0%} interval':>16}"
    return "\n".join(
        [head]
        + [f"{name:<14} {r.mean:>7.3f}   {r.interval.low:>7.3f} - {r.interval.high:.3f}" for name, r in rates.items()]
    )


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status, 2 after a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m cera.evaluation.tasks.logistic_map", description=__doc__)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--adapter", type=Path, help="a run directory, or an adapter's directory")
    model.add_argument("--base", help="a base model alone")
    parser.add_argument("--problems", type=int, default=50, help="how many")
    parser.add_argument("--steps", type=int, default=10, help="values asked for in each")
    parser.add_argument("--decimals", type=int, default=4, help="places that values are rounded to")
    parser.add_argument("--seed", type=int, default=0, help="of the problems")
    parser.add_argument("--max-new-tokens", type=int, default=768, help="longest answer")
    parser.add_argument("--batch-size", type=int, default=8, help="answers generated at a time")
    parser.add_argument("--out", type=Path, help="folder of the results (default: the adapter's, or runs/base)")
    options = parser.parse_args(arguments)
    out = options.out or (options.adapter or Path("runs/base")) / "eval" / "logistic_map"
    try:
        asked = random_problems(options.problems, options.seed, options.steps, options.decimals)
        texts = _generate(asked, options)
    except (AdapterError, BackboneError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    values = [parse(text) for text in texts]
    scores = [
        score(of, problem.r, problem.x0, problem.decimals, problem.steps)
        for problem, of in zip(asked, values, strict=True)
    ]
    rates = summary(scores)
    out.mkdir(parents=True, exist_ok=True)
    records = [
        {"key": _key(problem), **asdict(problem), "question": problem.question, "text": text, "values": of}
        | {"score": asdict(result)}
        for problem, text, of, result in zip(asked, texts, values, scores, strict=True)
    ]
    with replacing(out / "records.jsonl") as file:
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    report = {"adapter": str(options.adapter) if options.adapter else None, "base": options.base}
    report |= {"problems": len(asked), "steps": options.steps, "decimals": options.decimals, "seed": options.seed}
    with replacing(out / "logistic_map.json") as file:
        file.write_text(json.dumps(report | {"rates": {n: asdict(r) for n, r in rates.items()}}, indent=2) + "\n")
    figure(list(zip(asked, values, strict=True))[:9]).savefig(out / "trajectories.png")
    print(f"{table(rates)}\n\n{out}: records.jsonl, logistic_map.json, trajectories.png")
    return 0


def _generate(asked: Sequence[Problem], options: argparse.Namespace) -> list[str]:
    """The greedy answer to each problem."""
    dtype, device = (torch.bfloat16, "cuda") if torch.cuda.is_available() else (torch.float32, "cpu")
    saved = SavedAdapter.find(options.adapter) if options.adapter else None
    tokenizer = load_tokenizer(saved.base if saved else options.base)
    prompts = [
        render(tokenizer, [{"role": "user", "content": problem.question}], add_generation_prompt=True)
        for problem in asked
    ]
    sampling = Sampling(max_new_tokens=options.max_new_tokens)
    model = saved.load(dtype, device) if saved else load_model(options.base, dtype).to(device)
    backend = TransformersBackend(model, tokenizer, options.batch_size)
    found = dict(backend.generate(prompts, [_key(problem) for problem in asked], sampling))
    return [found[i][0].text for i in range(len(asked))]


def _key(problem: Problem) -> str:
    return f"r={problem.r}, x0={problem.x0}"


def _map(r: float, x: float) -> float:
    return r * x * (1 - x)


def _half_unit(decimals: int) -> float:
    return 0.5 * 10.0**-decimals


def _leading(holds: Any) -> int:
    """How many hold before the first that does not."""
    count = 0
    for one in holds:
        if not one:
            break
        count += 1
    return count


def _follows(values: Sequence[float], r: float, x0: float, decimals: int) -> list[bool]:
    """Whether each value is the map of the one before, to rounding."""
    before = [x0, *values][: len(values)]
    return [abs(v - _map(r, u)) <= _half_unit(decimals) + SLACK for u, v in zip(before, values, strict=True)]


def _collapse(
    values: Sequence[float], truth: Sequence[float], follows: Sequence[bool], decimals: int
) -> tuple[int, int] | None:
    """Where a collapse begins and ends, in positions; a value that the map itself repeats is a fixed point."""
    start = 0
    for end in range(1, len(values) + 1):
        if end < len(values) and values[end] == values[start]:
            continue
        moved = max(truth[start:end]) - min(truth[start:end])
        if end - start >= COLLAPSE and not follows[start + 1] and moved > 2 * _half_unit(decimals):
            return start, end
        start = end
    return None


def _last_link(chain: str) -> float | None:
    """The number that a chain of equations ends in, if it does."""
    number = _NUMBER.match(_CHAIN.split(chain)[-1])
    return float(number["number"]) if number else None


def _draw(ax: Axes, problem: Problem, values: Sequence[float]) -> None:
    truth = trajectory(problem.r, problem.x0, problem.steps)
    stated = list(values[: problem.steps])
    ax.plot(range(problem.steps + 1), [problem.x0, *truth], color="0.6", marker="o", markersize=3, label="truth")
    ax.plot(range(1, len(stated) + 1), stated, color="C0", linestyle="--", marker="x", markersize=5, label="model")
    span = _collapse(stated, truth, _follows(stated, problem.r, problem.x0, problem.decimals), problem.decimals)
    if span is not None:
        ax.axvspan(span[0] + 0.5, span[1] + 0.5, color="C3", alpha=0.15, label="collapse")
    result = score(stated, problem.r, problem.x0, problem.decimals, problem.steps)
    ax.set_title(f"r={problem.r}, $x_0$={problem.x0}: {result.correct}/{result.judged} right", fontsize="medium")
    ax.set(ylim=(-0.03, 1.03), xlim=(-0.3, problem.steps + 0.6))
    ax.grid(visible=True, alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
