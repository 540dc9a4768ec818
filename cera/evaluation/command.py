"""The command ``cera evaluate``."""

import argparse
import os
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jsonargparse import Namespace, set_parsing_settings

from cera.cli.evaluation_table import evaluation_table
from cera.cli.parser import ConfigurationParser
from cera.cli.run_command import run_command
from cera.cli.training_help import ShortHelp
from cera.evaluation.evaluate import Evaluation, evaluate, prepare
from cera.evaluation.generation import Backend, TransformersBackend
from cera.evaluation.tasks import Task
from cera.evaluation.vllm import Vllm
from cera.models.backbone import load_config, load_model, load_tokenizer
from cera.models.weight_files import check_weight_files
from cera.runs.saved_adapter import SavedAdapter

DESCRIPTION = """Evaluate an adapter, or a base model alone, on a task.

    cera evaluate --config configs/eval_gsm8k.yaml --adapter runs/smol_cera
    cera evaluate --config configs/eval_gsm8k.yaml --base HuggingFaceTB/SmolLM2-135M-Instruct
    cera evaluate --config configs/eval_math_pass10.yaml --adapter runs/cera --backend vllm --vllm.python FILE

Results go to eval/NAME in the run directory. The same command resumes an evaluation that was stopped.
configs/eval_*.yaml name the tasks that come with the package; --evaluation.task.help CLASS explains one.
"""
USAGE = "cera evaluate --config CONFIG (--adapter ADAPTER | --base BASE) [--KEY=VALUE ...]"
BACKENDS = ("transformers", "vllm")
DTYPES = ("bfloat16", "float16", "float32")
LOG = "server.log"
"""Name of a server's log in the folder of results."""


class EvaluationHelp(ShortHelp, argparse.RawDescriptionHelpFormatter):
    """Formats options as ``cera train`` does, and the description as it is written."""


def build_parser() -> ConfigurationParser:
    """Return the parser of the command's arguments."""
    set_parsing_settings(subclasses_enabled=[Task])  # a dataclass, of which a configuration names a subclass
    parser = ConfigurationParser(
        prog="cera evaluate", usage=USAGE, description=DESCRIPTION, formatter_class=EvaluationHelp
    )
    parser.add_config_option("Configuration with an `evaluation`.")
    parser.add_argument("--adapter", type=str | None, help="A run directory, or the directory of an adapter.")
    parser.add_argument("--base", type=str | None, help="The base model: alone, or in place of the adapter's own.")
    parser.add_argument(
        "--out", type=str | None, help="Parent of eval/NAME (default: the run directory, or runs/base)."
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="Precision of the model.")
    parser.add_argument("--backend", choices=BACKENDS, default="transformers", help="What generates the answers.")
    parser.add_class_arguments(Evaluation, "evaluation")
    parser.add_class_arguments(Vllm, "vllm")
    return parser


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch")

    def parse_and_evaluate() -> None:
        parser = build_parser()
        config = parser.parse_args(arguments)
        try:
            options = parser.instantiate(config)
        except TypeError as error:  # a class takes arguments of another kind
            raise ValueError(f"the configuration cannot be used: {error}") from error
        _evaluate(options)

    return run_command(parse_and_evaluate, on_interrupt="stopped; the same command resumes from here.")


def _evaluate(options: Namespace) -> None:
    if options.adapter is None and options.base is None:
        raise ValueError("--adapter (a run or an adapter directory) or --base (a model) must be given.")
    evaluation: Evaluation = options.evaluation
    evaluation.task.check()
    saved = SavedAdapter.find(options.adapter, options.base) if options.adapter else None
    if saved is None:
        check_weight_files(options.base)
    folder = Path(options.out or options.adapter or "runs/base") / "eval" / evaluation.name
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    vllm: Vllm | None = options.vllm if options.backend == "vllm" else None
    if vllm is not None:
        vllm.check(evaluation, saved, world_size)
    elif options.vllm != Vllm():
        raise ValueError("--vllm.* is for --backend vllm, got --backend transformers.")
    if world_size > 1:
        dist.init_process_group("gloo")
    try:
        base = saved.base if saved else options.base
        tokenizer = saved.tokenizer() if saved else load_tokenizer(base)
        model = {"base": base, "dtype": options.dtype}
        model |= {"adapter": saved.digest(), "quantization": saved.quantization} if saved else {"adapter": None}
        if vllm is not None:
            model["backend"] = "vllm"
            if vllm.server is not None:
                model["dtype"] = None  # which the server does not tell
        prompted = prepare(evaluation, tokenizer, folder, model, load_config(base))
        with ExitStack() as stack:

            def load() -> Backend:
                if vllm is not None:
                    place = vllm.server or f"a server that is started, whose log is {folder / LOG}"
                    print(f"asking {place}", file=sys.stderr, flush=True)
                    served = vllm.backend(evaluation, prompted, base, saved, tokenizer, options.dtype, folder / LOG)
                    return stack.enter_context(served)
                loaded = _load_model(saved, options)
                return TransformersBackend(loaded, tokenizer, evaluation.batch_size, progress=rank == 0)

            report = evaluate(evaluation, prompted, load, folder, model, rank, world_size)
    finally:
        if world_size > 1:
            dist.destroy_process_group()
    if rank == 0:
        print(f"\n{evaluation_table(report)}\n\nrecords and eval.json: {folder}")


def _load_model(saved: SavedAdapter | None, options: Namespace) -> Any:
    named = saved.base if saved else options.base
    print(f"loading {named}{f' with {saved.folder}' if saved else ''}", file=sys.stderr, flush=True)
    dtype = getattr(torch, options.dtype)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    return saved.load(dtype, device) if saved else load_model(options.base, dtype).to(device).eval()
