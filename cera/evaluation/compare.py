"""Two evaluations of the same problems: is the difference more than chance?

    python -m cera.evaluation compare runs/smol_lora runs/smol_cera

Each is a run directory with results in ``eval/NAME``, or such a folder itself. Where both hold several, ``--name`` says
which. The intervals are of the difference B - A, by resampling the problems of both together; McNemar's test takes the
problems that one alone solves.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cera.evaluation.evaluate import scores
from cera.evaluation.records import Record, RecordError, read
from cera.evaluation.statistics import mcnemar, paired_bootstrap
from cera.runs.checkpoints import differences


def find(folder: Path, name: str | None) -> Path:
    """The folder of the results: ``folder`` itself, or the one in its ``eval``.

    Raises:
        RecordError: There is none, or several and no ``name``.
    """
    if (folder / "eval.json").is_file():
        return folder
    found = sorted(path.parent for path in folder.glob(f"eval/{name or '*'}/eval.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise RecordError(f"{folder}/eval holds {names} as finished evaluations{'' if name else '; give --name'}.")
    return found[0]


def compare(a: Sequence[Record], b: Sequence[Record], pass_at: Sequence[int]) -> str:
    """The paired comparison as text: pass@k of both, the difference with its interval and p-value, and McNemar's test.

    Args:
        a: Records of the first.
        b: Records of the second, of the same problems.
        pass_at: The k to compare at.

    Raises:
        RecordError: The problems or their answers are not the same.
    """
    gold = [{record["key"]: record["gold"] for record in records} for records in (a, b)]
    if gold[0] != gold[1]:
        odd = sorted(key for key in gold[0].keys() | gold[1].keys() if gold[0].get(key) != gold[1].get(key))
        raise RecordError(f"the two are not of the same problems: {len(odd)} differ, such as {odd[0]}.")
    second = {record["key"]: record for record in b}
    b = [second[record["key"]] for record in a]
    lines = [f"{len(a)} problems", f"{'':<8} {'A':>8} {'B':>8} {'B - A':>8}  95% interval          p"]
    for k in pass_at:
        of_a, of_b = scores(a, k), scores(b, k)
        found = paired_bootstrap(of_a, of_b)
        interval = f"({found.interval.low:+.2%}, {found.interval.high:+.2%})"
        row = f"{of_a.mean():>8.2%} {of_b.mean():>8.2%} {found.difference:>+8.2%}  {interval:<20} {found.p_value:.4f}"
        lines.append(f"{f'pass@{k}':<8} {row}")
    if all(len(record["correct"]) == 1 for record in [*a, *b]):
        test = mcnemar(scores(a, 1), scores(b, 1))
        lines.append(
            f"only A right: {test.only_a}, only B right: {test.only_b}; McNemar's exact test: p = {test.p_value:.4f}"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status, 2 after a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m cera.evaluation compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", type=Path, help="the first run or results' folder")
    parser.add_argument("b", type=Path, help="the second")
    parser.add_argument("--name", help="of the evaluation")
    options = parser.parse_args(arguments)
    try:
        folders = [find(folder, options.name) for folder in (options.a, options.b)]
        reports = [json.loads((folder / "eval.json").read_text()) for folder in folders]
        of_a, of_b = (read(folder / "records.jsonl") for folder in folders)
        pass_at = [int(name.removeprefix("pass@")) for name in reports[0]["metrics"] if name in reports[1]["metrics"]]
        print("\n".join(f"{name} = {folder}" for name, folder in zip("AB", folders, strict=True)))
        for line in _asked_differently(*(report["settings"] for report in reports)):
            print(f"note: {line}")
        print(compare(of_a, of_b, pass_at))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _asked_differently(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Settings beside the adapter in which the two differ."""
    plain = [json.dumps({k: v for k, v in of.items() if k not in ("adapter", "checkpoint")}) for of in (a, b)]
    return differences(*plain)
