"""Runs one benchmark, or all, prints a table and saves the results: ``python -m benchmarks NAME [--quick]``.

``python -m benchmarks report`` writes docs/performance.md from the saved results of full runs.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

from benchmarks.harness import RESULTS, ratio_table, result_file, save
from benchmarks.process import BenchmarkError
from cera.cli.paths import user_path

NAMES = (
    *("layer", "decoding", "logits", "tracking", "spectra"),
    *("training", "dora", "startup", "scaling", "mixed", "mixed_many", "estimate"),
)
UNREPORTED = ("together", "peers")
"""Benchmarks that have not been run in full."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 2 if a benchmark cannot run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "name", choices=[*NAMES, *UNREPORTED, "all", "report"], help="a benchmark, all of them, or the report"
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: all in under ten minutes")
    parser.add_argument(
        "--results", type=user_path, default=RESULTS, help="folder of the JSON files (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    options = parser.parse_args(arguments)
    if options.name == "report":
        if options.quick:
            parser.error("the report only takes full results: leave out --quick")
        return report(options.results)
    names = list(NAMES) if options.name == "all" else [options.name]
    files = [result_file(name, options.quick, options.results) for name in names]
    if not options.overwrite and (existing := [str(file) for file in files if file.exists()]):
        print(f"error: {', '.join(existing)} exists already; give other --results, or --overwrite.", file=sys.stderr)
        return 2
    results = []
    for name in names:
        start = time.perf_counter()
        print(f"{name}: running", file=sys.stderr, flush=True)
        try:
            result = importlib.import_module(f"benchmarks.{name}").run(options.quick)
        except BenchmarkError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 2
        path = save(result, options.quick, options.results)
        print(f"{name}: {time.perf_counter() - start:.0f} s, {path}", file=sys.stderr, flush=True)
        results.append(result)
    print(ratio_table(results))
    return 0


def report(results: Path) -> int:
    """Write the report, print its files and the goals missed without a note, and return the exit status."""
    from benchmarks.report import NOTES, write

    try:
        files, unexplained = write(NAMES, results, unreported=UNREPORTED)
    except BenchmarkError as error:
        print(f"error: report: {error}", file=sys.stderr)
        return 2
    if unexplained:
        print(f"{NOTES} does not explain the missed goals of: {', '.join(unexplained)}", file=sys.stderr)
    print(*files, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
