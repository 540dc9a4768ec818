"""Runs the protocols of configs/protocols on the small model, and prints what each run measured as a Markdown table.

    python scripts/protocols.py --runs /tmp/protocols

A run that has ended is not repeated.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from cera.runs.finished import FinishedRun

REPOSITORY = Path(__file__).resolve().parents[1]
PROTOCOLS = ("paper", "authors_code", "authors_code_lora", "ours", "peft_metamathqa")
COLUMNS = {
    "val/perplexity": "held-out perplexity",
    "forgetting/perplexity": "perplexity of general text",
    "forgetting/kl": "KL from the base",
}


def main() -> None:
    """Run what has not been run, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="directory of the runs")
    options = parser.parse_args()
    rows = ["| protocol | steps | " + " | ".join(COLUMNS.values()) + " |", "| --- " * (2 + len(COLUMNS)) + "|"]
    for protocol in PROTOCOLS:
        run = options.runs / f"smol_{protocol}"
        if not (run / "adapter").is_dir():
            file = f"configs/protocols/smol_{protocol}.yaml"
            command = [sys.executable, "train.py", "--config", file, f"--runs={options.runs}", "--answer_tokens=0"]
            subprocess.run(command, cwd=REPOSITORY, check=True)
        rows.append(row(protocol, FinishedRun.read(run)))
    print("\n".join(rows))


def row(protocol: str, run: FinishedRun) -> str:
    """Return the row of a run: the base's values, before the first step, and those of the last validation."""
    cells = []
    for column in COLUMNS:
        curve = run.curve(column)
        cells.append(f"{curve[0]:.4f} → {curve[max(curve)]:.4f}")
    return f"| `smol_{protocol}` | {run.config['trainer']['max_steps']} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
