"""Serves a base model with CeRA and LoRA adapters over the OpenAI API, in vLLM.

    cera serve MODEL --adapter tenant-a=runs/a/adapter --adapter tenant-b=runs/b/adapter --python ~/serve/bin/python
    cera serve MODEL --adapter-root adapters --python ~/serve/bin/python

vLLM needs an older transformers than cera, so the server, `cera-vllm`, has an environment of its own; docs/serving.md
says how to make it. This command runs `cera-serve` there. All arguments but --python are passed on to it: --adapter
NAME=DIR serves the adapter in DIR as NAME, --adapter-root DIR allows loading others from within DIR while the server
runs, and any other option is vLLM's.
"""

import os
import sys
from pathlib import Path

from cera.cli.command_parser import CommandParser
from cera.cli.run_command import run_command
from cera.serving_environment import PACKAGE, serving_python


def main(arguments: list[str]) -> int:
    """Become the server, or return 2 after a user's mistake."""
    parser = CommandParser("serve", __doc__)
    parser.add_argument("--python", type=Path, metavar="FILE", help="Python of the environment that has cera-vllm")
    options, others = parser.parse_known_args(arguments)
    return run_command(lambda: _serve(options.python, others))


def _serve(python: Path | None, arguments: list[str]) -> None:
    interpreter = serving_python(python, "cera serve", "--python")
    sys.stdout.flush()
    os.execv(interpreter, [interpreter, "-m", PACKAGE, *arguments])  # signals go to the server itself
