"""Runs checks one after the other within a time budget; the failure of one never stops the others.

Each check is a process group of its own, which is killed at its time limit: an error of CUDA leaves a process, and not
a machine, unusable.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpu_check.checks import Check

REPOSITORY = Path(__file__).parent.parent
State = Literal["passed", "missed", "failed", "not possible", "not run"]
LEAST = 10.0
"""Seconds of the budget below which no check is started: the imports of one take as long."""

LONGEST = 2000
"""Maximum number of characters of a failed process's output that are kept."""


@dataclass
class Outcome:
    """What came of a check.

    Attributes:
        check: Its name, as in ``gpu_check.checks``.
        what: What it shows.
        state: ``passed``; ``missed``, if all was measured and a goal is not reached; ``failed``; ``not possible`` on
            this device; or ``not run``, for lack of time.
        reason: Why it is not ``passed``; empty if it is.
        seconds: How long it took.
        tests: State and reason of each test by name.
        result: The result of a measurement, as ``gpu_check.measurements`` writes it.
    """

    check: str
    what: str
    state: State
    reason: str = ""
    seconds: float = 0.0
    tests: dict[str, tuple[State, str]] = field(default_factory=dict)
    result: dict[str, Any] | None = None


def run(
    checks: Sequence[Check],
    device: str,
    base: Path,
    folder: Path,
    budget: float,
    report: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run checks in their order, and return what came of each.

    Args:
        checks: The checks.
        device: ``cpu`` or ``cuda``.
        base: Directory of the base with random weights.
        folder: Directory for the output of the checks, ``NAME.log``.
        budget: Seconds for all of them.
        report: Is called with each outcome.
    """
    deadline, outcomes = time.monotonic() + budget, []
    for check in checks:
        left = deadline - time.monotonic()
        if left < LEAST:
            outcome = Outcome(check.name, check.what, "not run", "the time budget was used up")
        else:
            outcome = _run(check, device, base, folder, min(left, check.seconds), left < check.seconds)
        outcomes.append(outcome)
        report(outcome)
    return outcomes


def _run(check: Check, device: str, base: Path, folder: Path, limit: float, cut: bool) -> Outcome:
    """Run a check for at most ``limit`` seconds; ``cut`` says that the budget, and not the check, sets the limit."""
    name = f"{check.name}{'_measured' if check.measures else ''}"
    out, log = folder / f"{name}.out", folder / f"{name}.log"
    out.unlink(missing_ok=True)
    start = time.monotonic()
    status = run_process(check.command(sys.executable, device, base, out), log, limit)
    outcome = Outcome(check.name, check.what, "failed", seconds=round(time.monotonic() - start, 1))
    if status is None and cut:
        outcome.state, outcome.reason = "not run", f"stopped after {limit:.0f} s, when the time budget was used up"
    elif status is None:
        outcome.reason = f"stopped after its limit of {limit:.0f} s"
    elif not out.is_file() or (status != 0 and check.measures):
        outcome.reason = f"ended with status {status}: {_end_of(log)}"
    elif check.measures:
        outcome.result = json.loads(out.read_text())
        missed = [row["what"] for row in outcome.result["rows"] if row["reached"] is False]
        outcome.state = "missed" if missed else "passed"
        outcome.reason = f"goals are not reached: {'; '.join(missed)}" if missed else ""
    else:
        outcome.tests = read_tests(out)
        outcome.state, outcome.reason = summarize(outcome.tests)
    return outcome


def run_process(command: Sequence[str], log: Path, limit: float) -> int | None:
    """Run a command in a process group of its own, and return its status; ``None`` if it was killed at its limit."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**environment, "TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what it has started
            process.wait()


def read_tests(file: Path) -> dict[str, tuple[State, str]]:
    """Return state and reason of each test of a file in JUnit's format: a skipped one is not possible here."""
    states: dict[str, State] = {"skipped": "not possible", "failure": "failed", "error": "failed"}
    tests: dict[str, tuple[State, str]] = {}
    for case in ElementTree.parse(file).iter("testcase"):
        tests[case.get("name") or ""] = "passed", ""
        for kind, state in states.items():
            if (found := case.find(kind)) is not None:
                tests[case.get("name") or ""] = state, _reason(found)
    return tests


def _reason(element: ElementTree.Element) -> str:
    """Return the message of a test's element; of a file that is skipped or broken as a whole it is in the text."""
    message, text = (element.get("message") or "").strip(), (element.text or "").strip()
    if message.startswith("collection"):
        message = text.rpartition("Skipped: ")[2].rstrip("')") if "Skipped: " in text else text.splitlines()[-1]
    return message[:LONGEST]


def summarize(tests: dict[str, tuple[State, str]]) -> tuple[State, str]:
    """Return the state of a file of tests, and its reason: it has failed if a test has, and passed if any has."""
    if not tests:
        return "failed", "it has no test"
    states: tuple[State, ...] = ("failed", "not possible")
    for state in states:
        of_state = {name: reason for name, (own, reason) in tests.items() if own == state}
        if of_state and (state == "failed" or len(of_state) == len(tests)):
            first = next(iter(of_state.values())).splitlines()[:1]
            return state, f"{len(of_state)} of {len(tests)} tests: {''.join(first)}"
    return "passed", ""


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-LONGEST:].strip()
