"""`cera serve` hands over to cera-serve in another environment; serving/tests tests the server itself."""

import os
import subprocess
import sys

from conftest import REPOSITORY


def serve(*arguments: str, installed: bool) -> subprocess.CompletedProcess[str]:
    """Run `cera serve`, with ``cera_vllm`` (which imports vLLM only to serve) on the path or not."""
    path = os.pathsep.join([str(REPOSITORY), *([str(REPOSITORY / "serving")] if installed else [])])
    return subprocess.run(
        [sys.executable, "-m", "cera", "serve", *arguments],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_arguments_reach_the_server() -> None:
    """Its own error for a mistake, and its own exit status."""
    for given in ([], [f"--python={sys.executable}"]):
        done = serve("model", "--adapter", "a=x", *given, "--adapter", "tenant", installed=True)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == "cera-serve: error: --adapter must be NAME=DIR, got 'tenant'"


def test_an_environment_without_the_server_is_one_line(tmp_path) -> None:
    done = serve("model", installed=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: `cera serve` needs --python FILE, the Python of an environment")
    done = serve("model", f"--python={sys.executable}", installed=False)
    assert (done.returncode, done.stderr) == (2, f"error: {sys.executable} has no cera-vllm: see docs/serving.md.\n")
    done = serve("model", f"--python={tmp_path}", installed=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --python must be an interpreter, got {tmp_path}: ")
