"""Serve a model with CeRA and LoRA adapters over the OpenAI API, in vLLM.

    cera-serve MODEL --adapter tenant-a=runs/a/adapter --adapter tenant-b=runs/b/adapter
    curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\
        -d '{"model": "tenant-a", "prompt": "Who are you?"}'

Any other option is vLLM's. With --adapter-root, POST /v1/load_lora_adapter {"lora_name": NAME, "lora_path": PATH} loads
an adapter from PATH within that directory while the server runs, and /v1/unload_lora_adapter {"lora_name": NAME}
unloads one. An adapter is copied when it is loaded: its directory may then be changed or deleted.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be."""
USUAL_RANK = 64
"""Rank for which there is room if adapters are loaded later: the default of ``CeraConfig``."""
MOST_SLOTS = 16
"""Largest number of adapters in one batch, unless --max-loras says otherwise."""
GUARDED = ("/adapters", "/invocations")
"""Further paths that need the key of --api-key: by the first adapters can be loaded, too, and the second answers."""
OURS = {
    "--lora-modules": "--adapter NAME=DIR",
    "--model": "MODEL as the first argument",
    "--api-server-count": "one process: adapters are loaded in it",
    "--trust-remote-code": "a model whose code is in transformers or vLLM",
}
"""Options of vLLM that this server does not take -> what there is instead."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until it is stopped, and return the exit status: 2 after a user's mistake."""
    options, others = parse(sys.argv[1:] if arguments is None else list(arguments))
    return serve(options, others)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of this server, and those of vLLM's."""
    parser = argparse.ArgumentParser(
        prog="cera-serve",
        usage="cera-serve MODEL [--adapter NAME=DIR ...] [--adapter-root DIR] [any option of vLLM's server]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="directory or hub name of the base model")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="serve the adapter in DIR as NAME (repeatable)",
    )
    parser.add_argument(
        "--adapter-root", type=Path, metavar="DIR", help="allow loading adapters from within DIR while running"
    )
    parser.add_argument(
        "--until-eof",
        action="store_true",
        help="stop when standard input ends, as a pipe does with the process that started this one",
    )
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        parser.error(f"MODEL comes first, got {arguments[0]}")
    options, others = parser.parse_known_args(arguments)
    for other in others:
        name = other.partition("=")[0].replace("_", "-")
        if name in OURS:
            parser.error(f"{name} is not for this server: use {OURS[name]}")
    adapters: dict[str, Path] = {}
    for adapter in options.adapter:
        name, separator, folder = adapter.partition("=")
        if not separator or not folder:
            parser.error(f"--adapter must be NAME=DIR, got {adapter!r}")
        if name in adapters:
            parser.error(f"--adapter names {name!r} twice")
        adapters[name] = Path(folder)
    options.adapters = adapters
    if options.adapter_root is not None and not options.adapter_root.is_dir():
        parser.error(f"--adapter-root must be a directory, got {options.adapter_root}")
    return options, others


def serve(options: argparse.Namespace, others: list[str]) -> int:
    """Run vLLM's server with this package's adapters."""
    import uvloop
    import vllm

    from cera_vllm.loading import CHECK_LORA
    from cera_vllm.plugin import TESTED, is_tested

    if not is_tested(vllm.__version__):
        print(f"error: cera-serve needs vLLM {' or '.join(TESTED)}, found {vllm.__version__}.", file=sys.stderr)
        return 2
    os.environ[CHECK_LORA] = "1"  # read by the workers
    os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "0" if options.adapter_root is None else "1"

    from vllm.entrypoints.launchers.api_server import app_state
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.middleware import authenticate
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from cera_vllm.adapter_files import AdapterError
    from cera_vllm.models import AdapterModels, check_name

    try:
        for name in options.adapters:
            check_name(name)
    except AdapterError as error:
        print(f"error: --adapter: {error}", file=sys.stderr)
        return 2
    if options.until_eof:
        threading.Thread(target=_stop_at_eof, daemon=True).start()
    cli_env_setup()
    given = make_arg_parser(FlexibleArgumentParser(prog="cera-serve")).parse_args(
        ["--model", options.model, "--enable-lora", *defaults(options, others), *others]
    )
    configure_logging_from_args(given)
    validate_parsed_serve_args(given)
    AdapterModels.adapters, AdapterModels.root = options.adapters, options.adapter_root
    authenticate.GUARDED_PREFIX += GUARDED
    app_state.OpenAIServingModels = AdapterModels  # type: ignore[misc]
    uvloop.run(run_server(given))
    return 0


def _stop_at_eof() -> None:
    while sys.stdin.buffer.read(1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def defaults(options: argparse.Namespace, others: list[str]) -> list[str]:
    """Return options of vLLM's with which the given adapters fit, where the user has not set them."""
    given = {other.partition("=")[0].replace("_", "-") for other in others}
    values: dict[str, Any] = {
        "--host": "127.0.0.1",
        "--max-loras": max(1, min(len(options.adapters), MOST_SLOTS)),
        "--max-lora-rank": largest_rank(options),
    }
    return [word for name, value in values.items() if name not in given for word in (name, str(value))]


def largest_rank(options: argparse.Namespace) -> int:
    """Return the smallest rank that vLLM takes and the adapters have room in; one that cannot be read has no say."""
    from cera_vllm.adapter_files import AdapterError, read_settings

    needed = 1 if options.adapter_root is None else USUAL_RANK
    for folder in options.adapters.values():
        try:
            settings = read_settings(folder)
        except AdapterError:
            continue  # it is refused with its reason when it is loaded
        needed = max(needed, settings.r, *settings.rank_pattern.values())
    return next((rank for rank in RANKS if rank >= needed), RANKS[-1])
