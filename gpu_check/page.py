"""The page of a check: what passed, what did not and why, and what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_check.runner import Outcome


def page(outcomes: Sequence[Outcome], machine: Mapping[str, Any]) -> str:
    """Return the page in Markdown.

    Args:
        outcomes: What came of each check.
        machine: What ``__main__`` records of the machine and the run.
    """
    parts = [
        "# Check of a machine",
        "\n".join(f"- {name}: {value}" for name, value in machine.items()),
        _counts(outcomes),
        _table(["check", "state", "seconds", "reason"], [_row(outcome) for outcome in outcomes]),
    ]
    if machine.get("device") == "cpu":
        parts.insert(2, "**No GPU has run this.** Sizes are small, and goals, which are those of a GPU, are left out.")
    for outcome in outcomes:
        if outcome.result is not None:
            rows = [
                [row["what"], f"{row['median']:.3g}", row["goal"], {None: "", True: "yes", False: "no"}[row["reached"]]]
                for row in outcome.result["rows"]
            ]
            parts += [f"## {outcome.what}", _table(["what", "measured", "goal", "reached"], rows)]
            failed = outcome.result.get("details", {}).get("failed", {})
            parts += [f"Not measured, as it failed: {name}: {_line(error)}" for name, error in failed.items()]
        elif outcome.tests:
            tests = [[name, state, _line(reason)] for name, (state, reason) in outcome.tests.items()]
            parts += [f"## {outcome.what}", _table(["test", "state", "reason"], tests)]
    return "\n\n".join(parts) + "\n"


def _counts(outcomes: Sequence[Outcome]) -> str:
    states = [outcome.state for outcome in outcomes]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) + "."


def _row(outcome: Outcome) -> list[str]:
    return [outcome.what, outcome.state, f"{outcome.seconds:.0f}", _line(outcome.reason)]


def _line(text: str) -> str:
    """Return a text as one line of a table's cell, at most 300 characters."""
    return " ".join(text.split())[:300].replace("|", "\\|")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
