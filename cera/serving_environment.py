"""Finds the Python that runs ``cera-serve``, which has an environment of its own: vLLM does not go with cera's."""

import importlib.util
import subprocess
import sys
from pathlib import Path

PACKAGE = "cera_vllm"


def serving_python(python: str | Path | None, asker: str, option: str) -> str:
    """Return an interpreter that has cera-vllm.

    Args:
        python: The one that the user names; ``None`` for the one that runs this, if it has cera-vllm.
        asker: The command that needs it, for the message.
        option: The option that names it, for the message.

    Raises:
        ValueError: There is none; the message says how to have one.
    """
    if python is None and importlib.util.find_spec(PACKAGE) is None:
        raise ValueError(
            f"`{asker}` needs {option} FILE, the Python of an environment that has cera-vllm: vLLM cannot be installed "
            "beside cera. See docs/serving.md."
        )
    interpreter = str(python or sys.executable)
    try:
        found = subprocess.run([interpreter, "-c", f"import {PACKAGE}"], capture_output=True, check=False)
    except OSError as error:
        raise ValueError(f"{option} must be an interpreter, got {interpreter}: {error.strerror}.") from error
    if found.returncode:
        raise ValueError(f"{interpreter} has no cera-vllm: see docs/serving.md.")
    return interpreter
