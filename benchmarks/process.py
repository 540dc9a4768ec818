"""Worker processes, and their own age and memory. Imports no framework, since start-up is measured, too."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import psutil

REPOSITORY = Path(__file__).parent.parent


class BenchmarkError(ValueError):
    """A benchmark cannot run; the message says what is missing."""


def worker(module: str, *arguments: str) -> Any:
    """Run ``python -m MODULE ARGUMENTS --out FILE`` and return the JSON that it writes to the file.

    Raises:
        BenchmarkError: The process failed; the message ends with the last lines that it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments, "--out", str(out)],
            cwd=REPOSITORY,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not out.is_file():
            printed = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            command = " ".join(["python -m", module, *arguments])
            raise BenchmarkError(f"`{command}` ended with status {done.returncode}:\n{printed}")
        return json.loads(out.read_text())


def process_age() -> float:
    """Return the seconds since the start of this process, to about 10 ms."""
    return time.time() - psutil.Process().create_time()


def memory(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Return the resident bytes of this process: current (``VmRSS``) or peak (``VmHWM``).

    ``ru_maxrss`` is not used, since it starts at the size of the parent process.

    Raises:
        BenchmarkError: The system is not Linux.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError as error:
        raise BenchmarkError("Memory is read from /proc/self/status, which only Linux provides.") from error
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """Reset ``memory("VmHWM")`` to the currently resident bytes (see ``man 5 proc_pid_clear_refs``)."""
    Path("/proc/self/clear_refs").write_text("5")
