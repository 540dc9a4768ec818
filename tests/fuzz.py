"""Gives random rows, configurations, adapters and answers to the project: none hangs, and none ends in a traceback.

    python tests/fuzz.py --count 2000 --seed 0                # the four kinds in turn
    python tests/fuzz.py --count 1 --seed 1234 --kind rows    # a failure again

An input ends well if it is taken, or refused with one line. Its random numbers come from its kind and its seed alone;
the seeds of N inputs are ``--seed`` to ``--seed + N - 1``. An input that takes a minute ends the process and shows the
stack. The exit status is 1 if any input failed.
"""

import argparse
import faulthandler
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import make_tiny_llama
from fuzzing.adapters import Adapters
from fuzzing.answers import Answers
from fuzzing.configs import Configs
from fuzzing.rows import Rows

KINDS = {"rows": Rows, "configs": Configs, "adapters": Adapters, "answers": Answers}
LONGEST_ERROR = 1500
"""Maximum number of characters of an error."""

HANGING = 60.0
"""Seconds after which an input ends the process; each kind has a lower bound, beyond which an input has failed."""


@dataclass
class Outcome:
    """The end of the inputs of a kind.

    Attributes:
        taken: Number of inputs that were taken, or got a verdict.
        refused: Number of inputs that ended in one error.
        slowest: Maximum number of seconds of an input.
        failures: What is wrong, by seed.
    """

    taken: int = 0
    refused: int = 0
    slowest: float = 0.0
    failures: dict[int, str] = field(default_factory=dict)


def fuzz(kind: str, run: Callable[[random.Random], str], longest_seconds: float, seeds: Iterable[int]) -> Outcome:
    """Give an input of each seed to ``run``.

    Args:
        kind: Name of the kind.
        run: Makes an input, uses it, and returns the error that this ended in, or an empty text.
        longest_seconds: Maximum duration of an input.
        seeds: The seeds.
    """
    outcome = Outcome()
    for seed in seeds:
        faulthandler.dump_traceback_later(HANGING, exit=True, file=sys.__stderr__)
        start = time.perf_counter()
        try:
            error = run(random.Random(f"{kind} {seed}"))
            failure = wrong_form(error)
        except Exception:
            error, failure = "", traceback.format_exc()
        finally:
            faulthandler.cancel_dump_traceback_later()
        seconds = time.perf_counter() - start
        if seconds > longest_seconds:
            failure = failure or f"took {seconds:.1f} s"
        outcome.slowest = max(outcome.slowest, seconds)
        if failure:
            outcome.failures[seed] = failure
        elif error:
            outcome.refused += 1
        else:
            outcome.taken += 1
    return outcome


def wrong_form(error: str) -> str:
    """Return what is wrong with the form of an error; an empty text if it is one line of a bounded length."""
    if "\n" in error.strip():
        return f"an error of several lines: {error}"
    return f"an error of {len(error)} characters: {error}" if len(error) > LONGEST_ERROR else ""


def main() -> int:
    """Fuzz the kinds, and print the number of their inputs by outcome and each failure; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--count", type=int, default=2000, help="number of inputs, over all kinds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be given several times")
    options = parser.parse_args()
    kinds = options.kind or list(KINDS)
    shares = Counter(kinds[number % len(kinds)] for number in range(options.count))
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary) / "base"
        make_tiny_llama(base)
        for kind, number in shares.items():
            folder = Path(temporary) / kind
            folder.mkdir()
            run = KINDS[kind](str(base), folder)
            start = time.perf_counter()
            seeds = range(options.seed, options.seed + number)
            outcome = fuzz(kind, run, run.longest_seconds, seeds)
            for seed, failure in outcome.failures.items():
                print(f"{kind}, seed {seed}: {failure}", flush=True)
            print(
                f"{kind}: {number} inputs, {outcome.taken} taken, {outcome.refused} refused in one line, "
                f"{len(outcome.failures)} failed; slowest {outcome.slowest:.1f} s, "
                f"all {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            failed += len(outcome.failures)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
