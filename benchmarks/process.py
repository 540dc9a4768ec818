"""Worker processes, and their own age and memory. Imports no framework, since start-up is measured, too."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).parent.parent


def _load(path: Path) -> Any:
    """Load a module of the package by its file, without the package, whose import takes seconds and memory."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_memory = _load(REPOSITORY / "cera" / "memory" / "process.py")
peak_bytes, resident_bytes, reset_peak = _memory.peak_bytes, _memory.resident_bytes, _memory.reset_peak


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
