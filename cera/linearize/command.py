"""The best linear stand-in for a finished CeRA adapter: how much it keeps, as a table and a figure, and as a LoRA.

    python -m cera.linearize runs/smol_cera                   # a run, or any adapter directory
    python -m cera.linearize my-adapter --data chats.jsonl --rows 1000 --rank 32 --out my-lora

It prints the share of each layer's update that is kept, and the perplexity of base, CeRA and LoRA on the rows that were
held out of the fit.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from peft import PeftConfig, PeftModel
from torch import nn
from torch.nn import functional as F

from cera.data import DataError
from cera.data.chat import IGNORE
from cera.linearize.fit import EVERY, Linearization, can_linearize, linearize
from cera.models.backbone import BackboneError
from cera.runs.finished import RunError
from cera.runs.saved_adapter import AdapterError, SavedAdapter
from cera.spectral.command import chats_for
from cera.spectral.figures import FLOOR, panels
from cera.spectral.hooks import by_module
from cera.training.perplexity import Perplexity

ENOUGH = 10
"""Tokens per input of a layer from which a fit is not much its noise: d / n of the residual is explained by chance."""


@torch.no_grad()
def perplexity(model: nn.Module, batches: Iterable[dict[str, Any]]) -> float:
    """Of the labelled tokens of ``batches`` (``input_ids``, ``labels`` and ``position_ids``, each (batch, length))."""
    model.eval()
    device = next(model.parameters()).device
    metric = Perplexity().to(device)
    for batch in batches:
        for ids, labels, positions in zip(batch["input_ids"], batch["labels"], batch["position_ids"], strict=True):
            places = (labels[1:] != IGNORE).nonzero().flatten()
            if len(places):
                inputs = {"input_ids": ids[None].to(device), "position_ids": positions[None].to(device)}
                logits = model(**inputs, logits_to_keep=places.to(device)).logits[0].float()
                metric.update(F.cross_entropy(logits, labels[places + 1].to(device), reduction="sum"), len(places))
    return metric.compute().item()


def figure(found: Linearization) -> Figure:
    """What the stand-in keeps of each layer's update on held-out data, and what it loses, on a log scale."""
    drawn, (kept, lost) = panels(2)
    by_name = {layer.name: layer for layer in found.layers}
    for i, (module, names) in enumerate(by_module(by_name).items()):
        layers = [by_name[name] for name in names.values()]
        lines = {"": [layer.held_out for layer in layers]}
        if any(layer.any_rank != layer.held_out for layer in layers):
            lines[", any rank"] = [layer.any_rank for layer in layers]
        for (name, shares), style in zip(lines.items(), ("o-", "--"), strict=False):
            options: dict[str, Any] = {"markersize": 3, "color": f"C{i}", "label": module + name}
            kept.plot(list(names), shares, style, **options)
            lost.plot(list(names), [max(1 - share, FLOOR) for share in shares], style, **options)
    kept.axhline(1, color="0.4", linestyle="--", linewidth=1)
    kept.set(title=f"Energy that a LoRA of rank {found.config.r} keeps of CeRA's update", ylabel="share kept")
    kept.set_ylim(min(0, kept.get_ylim()[0]), 1.03)
    kept.legend(loc="lower left")
    lost.set(title="Energy that it loses", ylabel="share lost", yscale="log")
    for ax in (kept, lost):
        ax.set_xlabel("layer")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return drawn


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status, 2 after a user's mistake."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m cera.linearize", description=__doc__, formatter_class=formatter)
    parser.add_argument("folder", type=Path, metavar="RUN_OR_ADAPTER_DIR")
    parser.add_argument("--rank", type=int, help="of the LoRA (default: the adapter's r)")
    parser.add_argument("--data", type=Path, help="chat file to fit to and measure on (default: GSM-symbolic)")
    parser.add_argument("--rows", type=int, default=256, help="rows of it; a quarter is held out of the fit")
    parser.add_argument("--base", help="base model, instead of the one that the adapter names")
    parser.add_argument("--layers-at-a-time", type=int, help="layers in one pass over the data, to save memory")
    parser.add_argument("--out", type=Path, default=Path("linearized"), help="where LoRA and figure go")
    options = parser.parse_args(arguments)
    try:
        return _linearize(options)
    except (AdapterError, RunError, BackboneError, DataError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _linearize(options: argparse.Namespace) -> int:
    for flag, value in (("rank", options.rank), ("layers-at-a-time", options.layers_at_a_time)):
        if value is not None and value < 1:
            raise RunError(f"--{flag} must be at least 1, got {value}.")
    saved = SavedAdapter.find(options.folder, options.base)
    data = chats_for(saved.base, options.data, options.rows)
    of = saved.settings
    if not can_linearize(PeftConfig.from_pretrained(str(saved.folder))):
        raise RunError(
            f"{saved.folder}: peft_type {of.get('peft_type')}, granularity {of.get('granularity')}, target_parameters "
            f"{of.get('target_parameters')}, use_dora {of.get('use_dora')}. What is linearized is CeRA beside linear "
            "layers (CeraConfig with granularity='weight', no experts and no hybrid)."
        )
    if (options.out / "adapter_config.json").exists():
        raise RunError(f"--out: {options.out} holds an adapter already.")
    data.setup()
    batches = list(data.val_dataloader())
    if len(batches) < 2:
        raise RunError(f"--rows {options.rows} make {len(batches)} batch, too few to hold any out; take more rows.")
    model = saved.load()
    model.peft_config["default"].base_model_name_or_path = saved.base  # not its place in this machine's cache
    found = linearize(model, batches, options.rank, layers_at_a_time=options.layers_at_a_time)
    found.save(options.out)
    figure(found).savefig(options.out / "linearized.png")
    print(found.table())
    print(
        f"\nShare of the update's energy that is kept, in percent: {found.tokens[0]} tokens fitted to, "
        f"{found.tokens[1]} held out."
    )
    widest = max(layer.up.shape[1] for layer in found.layers)
    if found.tokens[0] < ENOUGH * widest:
        print(f"warning: few tokens for layers of {widest} inputs: more --rows make a better fit.", file=sys.stderr)
    held_out = batches[::EVERY]
    with model.disable_adapter():
        base = perplexity(model, held_out)
    cera = perplexity(model, held_out)
    lora = perplexity(PeftModel.from_pretrained(model.unload(), str(options.out)), held_out)
    print(f"Perplexity on the held-out rows: base {base:.4f}, CeRA {cera:.4f}, LoRA {lora:.4f}.")
    print(f"\nLoRA and figure: {options.out}")
    return 0
