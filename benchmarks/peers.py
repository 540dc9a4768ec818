"""Training on GSM8K against each peer as a competent user would tune it.

The settings of every contender, ours included, are searched first (``GRID``). Then the best that each could be made to
do is compared, in turns, beside what it does by default. Useful tokens are counted as in ``benchmarks.training``.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contender import TrainingTask
from benchmarks.harness import Goal, RatioRow, Result, interleaved, ratios
from benchmarks.training import BASE, WARMUP, contending, gsm8k, padding_share, tokens_per_second
from cera.models.backbone import locate

Settings = Mapping[str, Any]
BY_LENGTH = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 12}
"""Documents of like lengths, twelve a batch: as many tokens a step as four packed rows of 512, and little padding."""

PACKED = {"packing": True, "gradient_checkpointing": False}
COMPILED = {"model.compile_layers": True}

GRID: dict[str, dict[str, Settings]] = {
    "cera": {
        "default": {},
        "compiled": COMPILED,
        "compiled, fp32 adapter": {**COMPILED, "model.adapter_dtype": "float32"},
        "compiled, eight rows": {**COMPILED, "data.batch_size": 8},
        "compiled, two workers": {**COMPILED, "data.num_workers": 2},
        "eager attention": {"model.attn_implementation": "eager"},
    },
    "trainer": {
        "default": {},
        "by length": BY_LENGTH,
        "by length, bf16 adapter": {**BY_LENGTH, "adapter_dtype": "bfloat16"},
        "by length, two workers": {**BY_LENGTH, "dataloader_num_workers": 2},
        "by length, unfused AdamW": {**BY_LENGTH, "optim": "adamw_torch"},
        "by length, eager attention": {**BY_LENGTH, "attn_implementation": "eager"},
        "by length, torch_compile": {**BY_LENGTH, "torch_compile": True},
        "by length, torch_compile, bf16 adapter": {**BY_LENGTH, "torch_compile": True, "adapter_dtype": "bfloat16"},
    },
    "trl": {
        "default": {},
        "padding": {"gradient_checkpointing": False},
        "by length": {"gradient_checkpointing": False, **BY_LENGTH},
        "by length, bf16 adapter": {"gradient_checkpointing": False, "adapter_dtype": "bfloat16", **BY_LENGTH},
        "by length, fp32 adapter": {"gradient_checkpointing": False, "adapter_dtype": "float32", **BY_LENGTH},
        "by length, two workers": {"gradient_checkpointing": False, "dataloader_num_workers": 2, **BY_LENGTH},
        "by length, torch_compile": {"gradient_checkpointing": False, "torch_compile": True, **BY_LENGTH},
        "packing bfd": {**PACKED, "packing_strategy": "bfd"},
        "packing bfd_split": {**PACKED, "packing_strategy": "bfd_split"},
        "packing wrapped": {**PACKED, "packing_strategy": "wrapped"},
        "padding-free": {"gradient_checkpointing": False, "padding_free": True, "max_length": None},
    },
    "authors": {"default": {}},
}
"""Settings by contender and name; see ``TrainingTask.settings``."""

QUICK = {
    "cera": ("default",),
    "trainer": ("default", "by length"),
    "trl": ("default", "by length"),
    "authors": ("default",),
}
"""Names of the settings that a quick run searches."""

GOALS = {"trainer": Goal(">=", 1.5), "trl": Goal(">=", 2.5)}
"""Of the best of ours by the best of a peer."""


def run(quick: bool) -> Result:
    """Goals, each contender at its best: 1.5 times the tokens per second of the Trainer with LoRA, 2.5 times TRL's."""
    if quick:
        grid = {name: {setting: GRID[name][setting] for setting in names} for name, names in QUICK.items()}
        return compare(grid, locate(BASE), gsm8k(), steps=4, rounds=1)
    return compare(GRID, locate(BASE), gsm8k(), steps=8, rounds=5)


def compare(
    grid: Mapping[str, Mapping[str, Settings]], base: str, data: Path, steps: int, rounds: int, **sizes: int
) -> Result:
    """Search the settings of each contender, then compare the best and the default ones.

    Args:
        grid: Settings by contender and name, ``default`` among them; ``cera`` is a contender.
        base: A directory in transformers' format.
        data: GSM8K's ``train.jsonl``.
        steps: Steps of each run, more than ``WARMUP``.
        rounds: Number of runs of each that is compared; the search makes one.
        sizes: Other values of ``TrainingTask``, such as ``r``.
    """
    assert steps > WARMUP
    options = [f"--{name}={value}" for name, value in sizes.items()]

    def contender(name: str, setting: str) -> Any:
        return partial(contending(base, data, [*options, f"--settings={json.dumps(grid[name][setting])}"], name, steps))

    everything = {f"{name}: {setting}": contender(name, setting) for name in grid for setting in grid[name]}
    searched = {key: runs[0] for key, runs in interleaved(everything, rounds=1).items()}
    found = {
        name: {setting: tokens_per_second(searched[f"{name}: {setting}"]["steps"]) for setting in grid[name]}
        for name in grid
    }
    best = {name: max(rates, key=rates.__getitem__) for name, rates in found.items()}
    compared = {f"{name}: {setting}": contender(name, setting) for name in grid for setting in {best[name], "default"}}
    runs = interleaved(compared, rounds)
    rates = {key: [tokens_per_second(run["steps"]) for run in of_key] for key, of_key in runs.items()}

    def row(what: str, ours: str, theirs: str, goal: Goal | None = None) -> RatioRow:
        return RatioRow(f"training, {what}", ratios(rates[f"cera: {ours}"], rates[theirs]), goal)

    rows = []
    for name in grid:
        if name != "cera":
            key = f"{name}: {best[name]}"
            rows.append(row(f"each at its best: tokens/s of CeRA / {key}", best["cera"], key, GOALS.get(name)))
            rows.append(row(f"each by default: tokens/s of CeRA / {name}", "default", f"{name}: default"))
    details = {
        "best": best,
        "searched_tokens_per_second": found,
        "tokens_per_second": rates,
        "padding_share": {key: [padding_share(run["steps"]) for run in of_key] for key, of_key in runs.items()},
        "settings": {name: dict(settings) for name, settings in grid.items()},
        "task": {"r": TrainingTask.r, "max_length": TrainingTask.max_length, **sizes},
    }
    return Result("peers", rows, "bfloat16", details)
