"""``python -m benchmarks NAME [--quick]``: run one benchmark, or ``all``; print a table and save the results."""

import argparse
import importlib
import sys
import time
from pathlib import Path

from benchmarks.harness import RESULTS, save, table
from benchmarks.process import BenchmarkError

NAMES = ("layer", "decoding", "logits", "tracking", "spectra", "training")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 where a benchmark cannot be run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*NAMES, "all"], help="which benchmark")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: all in under ten minutes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files go (default: %(default)s)")
    options = parser.parse_args(arguments)
    results = []
    for name in NAMES if options.name == "all" else [options.name]:
        start = time.perf_counter()
        try:
            result = importlib.import_module(f"benchmarks.{name}").run(options.quick)
        except BenchmarkError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 2
        path = save(result, options.quick, options.results)
        print(f"{name}: {time.perf_counter() - start:.0f} s, {path}", file=sys.stderr, flush=True)
        results.append(result)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
