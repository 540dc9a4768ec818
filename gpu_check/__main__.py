"""Checks what a GPU does with this project, in ten minutes, on one machine, without a network.

    python -m gpu_check                                  # on the GPU, or on the CPU with small sizes if there is none
    python -m gpu_check --device cpu --budget 300
    python -m gpu_check --only adapters packing

It runs the tests of tests/gpu and measures training, layers, decoding and adapters in one pass. Each check says that
it passed, missed a goal, failed, is not possible on this device and why, or was not run. It writes check.json, the page
check.md, and the output of each check to a folder, and ends with status 1 if a check has failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_check.checks import CHECKS
from gpu_check.page import page
from gpu_check.runner import REPOSITORY, Outcome, run, run_process

BUDGET = 600.0
"""Default time budget in seconds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if a check has failed, 2 after a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = list(dict.fromkeys(check.name for check in CHECKS))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all checks (default: %(default)g)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="CHECK", help=f"of {', '.join(names)}")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "gpu_check", help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.budget <= 0:
        parser.error(f"--budget must be positive, got {options.budget:g}")
    start = time.monotonic()
    machine = describe_machine()
    device = options.device or ("cuda" if machine["gpu"] else "cpu")
    if device == "cuda" and not machine["gpu"]:
        parser.error(f"--device=cuda: torch {machine['torch']} finds no GPU")
    options.out.mkdir(parents=True, exist_ok=True)
    checks = [check for check in CHECKS if options.only is None or check.name in options.only]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        prepare = [sys.executable, "-m", "gpu_check.base", str(base), f"--device={device}"]
        size = "1b" if device == "cuda" else "tiny"
        status = run_process([*prepare, f"--size={size}"], options.out / "base.log", options.budget)
        if status != 0:
            print(f"the base has not been made, see {options.out / 'base.log'}: measurements fail", file=sys.stderr)
        outcomes = run(checks, device, base, options.out, options.budget - (time.monotonic() - start), _print)
    about = {"device": device, **machine, "seconds": round(time.monotonic() - start), "budget": options.budget}
    content = {"machine": about, "checks": [asdict(outcome) for outcome in outcomes]}
    (options.out / "check.json").write_text(json.dumps(content, indent=1) + "\n")
    (options.out / "check.md").write_text(page(outcomes, about))
    print(f"\n{options.out / 'check.md'}\n{options.out / 'check.json'}")
    return int(any(outcome.state == "failed" for outcome in outcomes))


def describe_machine() -> dict[str, Any]:
    """Return versions and the GPU's name, read in another process: this one never opens the GPU."""
    code = (
        "import json, platform, torch, transformers, peft\n"
        "gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None\n"
        "print(json.dumps({'gpu': gpu, 'python': platform.python_version(), 'torch': torch.__version__, "
        "'cuda': torch.version.cuda, 'transformers': transformers.__version__, 'peft': peft.__version__}))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    machine: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return machine


def _print(outcome: Outcome) -> None:
    reason = f": {outcome.reason.splitlines()[0][:150]}" if outcome.reason else ""
    print(f"{outcome.state:12} {outcome.seconds:5.0f} s  {outcome.what}{reason}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
