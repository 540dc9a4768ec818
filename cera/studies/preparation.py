"""What must be there before the runs of a study, such as a base model that is pre-trained here: commands of ``cera``.

    prepare:
      - pretrain --config cera://pretraining/tunnel

Each must do nothing if its work is done, as it is run each time that the study is.
"""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from cera.studies.axes import StudyError
from cera.studies.measure import CERA


def parse_prepare(content: Any) -> tuple[str, ...]:
    """Return the field ``prepare`` of a study's file; empty if there is none.

    Raises:
        StudyError: It is no list of commands.
    """
    commands = [] if content is None else content
    if not isinstance(commands, list) or not all(isinstance(line, str) and line.strip() for line in commands):
        raise StudyError(
            f"prepare must be a list of commands of cera, such as [pretrain --config FILE], got {content!r}."
        )
    return tuple(commands)


def prepare(commands: Sequence[str]) -> None:
    """Run the commands in order, with their output on the terminal.

    Raises:
        StudyError: A command fails.
    """
    for line in commands:
        print(f"cera {line}", file=sys.stderr, flush=True)
        status = subprocess.run([*CERA, *shlex.split(line)], stdout=sys.stderr, check=False).returncode
        if status:
            raise StudyError(f"prepare: `cera {line}` ended with status {status}; nothing was run.")
