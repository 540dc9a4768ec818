"""Turns a checkpoint of the CeRA authors' code into an adapter directory that PEFT and every command here read.

    cera import best.pt --base meta-llama/Meta-Llama-3-8B --activation silu --out adapters/theirs

CeRA (both generations of names, both variants, learned mix, recurrent latent), LoRA and DoRA are read; docs/variants.md
says what a file must hold. The weights are held against the base's shapes, and no pickled code is run.
"""

import argparse
import shutil
from pathlib import Path

from peft import PeftConfig
from safetensors.torch import save_file
from torch import Tensor

from cera.cli.command_parser import CommandParser
from cera.cli.errors import UsageError
from cera.cli.paths import expand_home, user_path
from cera.cli.run_command import run_command
from cera.models.backbone import build_skeleton, load_tokenizer
from cera.runs.adapter_settings import sort_sets
from cera.runs.adapter_weights import WEIGHTS_FILE
from cera.runs.authors_checkpoint import ACTIVATIONS, AuthorsCheckpoint
from cera.runs.files import give_usual_mode, sync_tree
from cera.runs.model_card import ModelCard
from cera.runs.saved_adapter import SavedAdapter


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status: 2 after a user's mistake."""
    parser = CommandParser("import", __doc__)
    parser.add_argument("file", type=user_path, metavar="CHECKPOINT.pt")
    parser.add_argument("--base", type=expand_home, required=True, help="base model that the adapter was trained on")
    parser.add_argument("--out", type=user_path, metavar="DIR", required=True, help="new directory for the adapter")
    parser.add_argument("--activation", choices=ACTIVATIONS, help="CeRA's activation, where the file does not say it")
    parser.add_argument(
        "--alpha", type=float, help="scale is alpha / rank, where the file does not say it (default: CeRA 1, LoRA 32)"
    )
    parser.add_argument("--recurrent-steps", type=int, help="steps of a recurrent latent, where the file is silent")
    options = parser.parse_args(arguments)
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    out: Path = options.out
    if out.exists():
        raise UsageError(f"--out: {out} exists already; give a new directory.")
    checkpoint = AuthorsCheckpoint.read(options.file)
    config, weights = checkpoint.convert(
        build_skeleton(options.base), options.activation, options.alpha, options.recurrent_steps
    )
    config.base_model_name_or_path = options.base
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _write(unfinished, checkpoint, config, weights)
        SavedAdapter(unfinished, options.base).check()
        sync_tree(unfinished)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{checkpoint.method} r={config.r} of {len(checkpoint.weights)} modules: {out}")  # type: ignore[attr-defined]


def _write(folder: Path, checkpoint: AuthorsCheckpoint, config: PeftConfig, weights: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    sort_sets(folder, config)
    base = str(config.base_model_name_or_path)
    recipe = {name.replace("_", " "): str(value) for name, value in checkpoint.progress.items()}
    maker = f"Its weights are those of `{checkpoint.file.name}`, a checkpoint of the authors' own code, converted."
    ModelCard(config, base, recipe, maker=maker).save(folder)
    load_tokenizer(base).save_pretrained(folder)
    give_usual_mode(folder)
