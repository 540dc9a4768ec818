"""Evaluate an adapter, or a base alone, on a task; or compare two that were.

    python -m cera.evaluation --config configs/eval_gsm8k.yaml --adapter runs/smol_cera
    python -m cera.evaluation --config configs/eval_gsm8k.yaml --base HuggingFaceTB/SmolLM2-135M-Instruct
    python -m cera.evaluation compare runs/smol_lora runs/smol_cera

Results go to ``eval/NAME`` in the run directory. The same command goes on with an evaluation that was stopped. On
several GPUs: ``torchrun --nproc-per-node N -m cera.evaluation ...``.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from cera.cli.compose import Composing
from cera.data import ChatDataset, DataError
from cera.evaluation import compare
from cera.evaluation.evaluate import Evaluation, evaluate, prepare, table
from cera.evaluation.generation import TransformersBackend
from cera.evaluation.records import RecordError
from cera.evaluation.tasks import Task
from cera.models.backbone import BackboneError, load_config, load_model, load_tokenizer
from cera.runs.saved_adapter import AdapterError, SavedAdapter

DTYPES = ("bfloat16", "float16", "float32")


class Parser(Composing, ArgumentParser):
    """Reads configuration files that include others."""


def parser() -> Parser:
    """The command line of an evaluation."""
    set_parsing_settings(subclasses_enabled=[ChatDataset, Task])  # dataclasses, of which a configuration names one
    made = Parser(prog="python -m cera.evaluation", description=__doc__, parser_mode="omegaconf+", exit_on_error=False)
    made.add_argument("--config", action=ActionConfigFile, help="Configuration with an `evaluation`.")
    made.add_argument("--adapter", type=str | None, help="A run directory, or an adapter's directory.")
    made.add_argument("--base", type=str | None, help="The base model: alone, or instead of the adapter's own.")
    made.add_argument("--out", type=str | None, help="Where eval/NAME goes (default: the run directory, or runs/base).")
    made.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="Precision of the model.")
    made.add_class_arguments(Evaluation, "evaluation")
    return made


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status, 2 after a user's mistake."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch")
    if arguments[:1] == ["compare"]:
        return compare.main(arguments[1:])
    try:
        reader = parser()
        return _evaluate(reader.instantiate(reader.parse_args(arguments)))
    except (ArgumentError, AdapterError, BackboneError, DataError, RecordError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here.", file=sys.stderr)
        return 130


def _evaluate(options: Namespace) -> int:
    if options.adapter is None and options.base is None:
        raise ValueError("--adapter (a run or an adapter directory) or --base (a model) must be given.")
    evaluation: Evaluation = options.evaluation
    evaluation.task.check()
    saved = SavedAdapter.find(options.adapter, options.base) if options.adapter else None
    folder = Path(options.out or options.adapter or "runs/base") / "eval" / evaluation.name
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1:
        dist.init_process_group("gloo")
    try:
        base = saved.base if saved else options.base
        tokenizer = load_tokenizer(base)
        about = {"base": base, "dtype": options.dtype}
        about |= {"adapter": saved.digest(), "quantization": saved.quantization} if saved else {"adapter": None}

        asked = prepare(evaluation, tokenizer, folder, about, load_config(base))

        def load() -> TransformersBackend:
            return TransformersBackend(_load(saved, options), tokenizer, evaluation.batch_size)

        report = evaluate(evaluation, asked, load, folder, about, rank, world_size)
    finally:
        if world_size > 1:
            dist.destroy_process_group()
    if rank == 0:
        print(f"\n{table(report)}\n\nrecords and eval.json: {folder}")
    return 0


def _load(saved: SavedAdapter | None, options: Namespace) -> Any:
    dtype = getattr(torch, options.dtype)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    return saved.load(dtype, device) if saved else load_model(options.base, dtype).to(device).eval()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
