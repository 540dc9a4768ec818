"""Fits the best LoRA to a trained CeRA adapter, and reports how much of the adapter's update it reproduces.

    cera linearize runs/smol_cera                   # a run, or any adapter directory
    cera linearize my-adapter --data chats.jsonl --rows 1000 --rank 32 --out my-lora

Prints the share of each layer's update that the LoRA reproduces, and the perplexity of base, CeRA and LoRA on the rows
held out of the fit. Writes the LoRA, a figure and linearization.json.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from torch.nn import functional as F

from cera.cli.command_parser import CommandParser
from cera.cli.configured_rows import chat_rows
from cera.cli.paths import expand_home, user_path
from cera.cli.run_command import run_command
from cera.cli.tables import table
from cera.data.chat import IGNORE
from cera.data.measured import measured_rows
from cera.data.template import prepare_template
from cera.linearize.adapter import Linearization, LinearizedLayer
from cera.linearize.figure import figure
from cera.linearize.fit import HOLD_OUT_EVERY, can_linearize, linearize
from cera.progress import progress
from cera.runs.files import replacing
from cera.runs.finished import RunError, adapter_label
from cera.runs.model_card import PAPER, ModelCard
from cera.runs.saved_adapter import SavedAdapter
from cera.training.perplexity import Perplexity

REPORT = "linearization.json"
"""What the command measured; it is written last, beside the LoRA."""

TOKENS_PER_INPUT = 10
"""Fewer tokens than this per layer input draw a warning: chance explains d / n of the residual."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status: 2 after a user's mistake."""
    parser = CommandParser("linearize", __doc__)
    parser.add_argument("folder", type=user_path, metavar="RUN_OR_ADAPTER_DIR")
    parser.add_argument("--rank", type=int, help="rank of the LoRA (default: the adapter's r)")
    parser.add_argument(
        "--data",
        type=user_path,
        help="rows to fit to and measure on: a chat file or configuration (default: GSM-symbolic)",
    )
    parser.add_argument("--rows", type=int, default=256, help="number of rows; a quarter is held out of the fit")
    parser.add_argument("--base", type=expand_home, help="base model (default: the one that the adapter names)")
    parser.add_argument("--layers-at-a-time", type=int, help="layers fitted in one pass over the data, to save memory")
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="DIR",
        help="new directory for the LoRA and the figure (default: linearized/ in RUN_OR_ADAPTER_DIR)",
    )
    parser.add_overwrite()
    options = parser.parse_args(arguments)
    options.out = options.out or options.folder / "linearized"
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    saved, batches = _load(options)
    print(f"loading {saved.base} with {saved.folder}", file=sys.stderr, flush=True)
    model = saved.load()
    config = model.peft_config["default"]
    config.base_model_name_or_path = saved.base  # not its path in this machine's cache
    linearization = linearize(
        model, batches, options.rank, layers_at_a_time=options.layers_at_a_time, progress=progress
    )
    (options.out / REPORT).unlink(missing_ok=True)  # of an earlier one, whose LoRA is replaced now
    linearization.save(options.out)
    tokenizer = saved.tokenizer()
    prepare_template(tokenizer)  # so that it has the template which rendered the data
    tokenizer.save_pretrained(options.out)
    figure(linearization).savefig(options.out / "linearized.png")
    _print_layers(linearization)
    perplexities = _perplexities(model, batches[::HOLD_OUT_EVERY], options.out)
    card(linearization, saved.base, config, perplexities).save(options.out)
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in perplexities.items())
    print(f"Perplexity on the held-out rows: {numbers}.")
    with replacing(options.out / REPORT) as file:
        file.write_text(json.dumps(report(linearization, perplexities), indent=2) + "\n")
    print(f"\nLoRA, figure and {REPORT}: {options.out}")


def _print_layers(linearization: Linearization) -> None:
    fit_tokens, held_out_tokens = linearization.tokens
    print(layer_table(linearization))
    print(
        "\nShare of the update's energy that the LoRA reproduces, in percent; "
        f"fitted to {fit_tokens} tokens, {held_out_tokens} held out."
    )
    widest = max(layer.up.shape[1] for layer in linearization.layers)
    if fit_tokens < TOKENS_PER_INPUT * widest:
        print(
            f"warning: {fit_tokens} tokens are few for layers of {widest} inputs; more --rows give a better fit.",
            file=sys.stderr,
        )


def _perplexities(model: PeftModel, held_out: list[dict[str, Any]], lora: Path) -> dict[str, float]:
    """Return the perplexity of the base, with CeRA and with the LoRA, and leave CeRA out of ``model``."""
    with model.disable_adapter():
        base = perplexity(model, progress(held_out, "perplexity of the base"))
    cera = perplexity(model, progress(held_out, "perplexity with CeRA"))
    linear = PeftModel.from_pretrained(model.unload(), str(lora))
    return {"base": base, "CeRA": cera, "LoRA": perplexity(linear, progress(held_out, "perplexity with the LoRA"))}


def card(linearization: Linearization, base: str, config: PeftConfig, perplexities: Mapping[str, float]) -> ModelCard:
    """Return the model card of a LoRA that was fitted to a CeRA adapter.

    Args:
        linearization: The LoRA.
        base: Name of the base model.
        config: Configuration of the CeRA adapter.
        perplexities: Perplexity on the held-out rows by name of the model.
    """
    remark = (
        f"The LoRA that comes closest to a {adapter_label(type(config).__name__, config.to_dict())} adapter (CeRA is "
        f"from {PAPER}): each layer's update was fitted by least squares, without further training. It can be merged."
    )
    fit_tokens, held_out_tokens = linearization.tokens
    recipe = {"fitted to": f"{fit_tokens} tokens", "held out": f"{held_out_tokens} tokens"}
    results = {"share of the update's energy that it reproduces, held out": f"{linearization.held_out_share:.2%}"}
    results |= {f"perplexity of held-out answers, {name}": f"{value:.4f}" for name, value in perplexities.items()}
    return ModelCard(linearization.config, base, recipe, results, remark=remark)


def _load(options: argparse.Namespace) -> tuple[SavedAdapter, list[dict[str, Any]]]:
    """Check the options; return the adapter and the batches of the data."""
    for flag, value in (("rank", options.rank), ("layers-at-a-time", options.layers_at_a_time)):
        if value is not None and value < 1:
            raise RunError(f"--{flag} must be at least 1, got {value}.")
    saved = SavedAdapter.find(options.folder, options.base)
    data = measured_rows(saved.base, chat_rows(options.data), options.rows, chat_template=saved.chat_template)
    settings = saved.settings
    if not can_linearize(PeftConfig.from_pretrained(str(saved.folder))):
        named = ("peft_type", "granularity", "target_parameters", "use_dora")
        raise RunError(
            f"{saved.folder}: {', '.join(f'{name} {settings.get(name)}' for name in named)}. Only CeRA beside linear "
            "layers can be linearized (CeraConfig with granularity='weight', no experts and no hybrid with DoRA)."
        )
    may_be_used = options.out.is_dir() and (options.overwrite or not any(options.out.iterdir()))
    if options.out.exists() and not may_be_used:
        raise RunError(
            f"--out: {options.out} exists already; give a new directory, or --overwrite to replace its files."
        )
    data.setup()
    batches = list(data.val_dataloader())
    if len(batches) < 2:
        raise RunError(f"--rows {options.rows} make {len(batches)} batch, too few to hold any out; take more rows.")
    return saved, batches


def layer_table(linearization: Linearization) -> str:
    """Format the shares of each layer, and their mean, in percent."""

    def percent(shares: LinearizedLayer | Linearization) -> list[float]:
        return [100 * share for share in (shares.fit_share, shares.held_out_share, shares.any_rank_share)]

    rows: list[list[Any]] = [[layer.name, layer.rank, *percent(layer)] for layer in linearization.layers]
    headers = ["layer", "rank", "fitted to", "held out", "any rank"]
    return table([*rows, ["mean", None, *percent(linearization)]], headers, floatfmt=".3f")


def report(linearization: Linearization, perplexities: Mapping[str, float]) -> dict[str, Any]:
    """Return the shares of all layers and their means, and the perplexities on the held-out rows, as JSON values."""
    shares = ("fit_share", "held_out_share", "any_rank_share")
    return {
        **{share: getattr(linearization, share) for share in shares},
        "tokens": dict(zip(("fit", "held_out"), linearization.tokens, strict=True)),
        "perplexity": dict(perplexities),
        "layers": [
            {"name": layer.name, "rank": layer.rank, **{share: getattr(layer, share) for share in shares}}
            for layer in linearization.layers
        ],
    }


@torch.no_grad()
def perplexity(model: nn.Module, batches: Iterable[dict[str, Any]]) -> float:
    """Return the perplexity over all labelled tokens.

    Args:
        model: A causal language model; it is put into eval mode.
        batches: With ``input_ids``, ``labels`` and ``position_ids``, each (batch, length).
    """
    model.eval()
    device = next(model.parameters()).device
    metric = Perplexity().to(device)
    for batch in batches:
        for ids, labels, positions in zip(batch["input_ids"], batch["labels"], batch["position_ids"], strict=True):
            labelled = (labels[1:] != IGNORE).nonzero().flatten()
            if len(labelled):
                inputs = {"input_ids": ids[None].to(device), "position_ids": positions[None].to(device)}
                logits = model(**inputs, logits_to_keep=labelled.to(device)).logits[0].float()
                nll = F.cross_entropy(logits, labels[labelled + 1].to(device), reduction="sum")
                metric.update(nll, len(labelled))
    return metric.compute().item()
