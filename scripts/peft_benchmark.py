"""Writes entries of CeRA for PEFT's MetaMathQA benchmark, in the form that its runner takes.

    python scripts/peft_benchmark.py peft/method_comparison/MetaMathQA --rank 32 --lr 1e-3

An entry is ``experiments/cera/NAME/adapter_config.json``, and with another learning rate than the benchmark's a
``training_params.json``. docs/protocols.md says how it is run.
"""

import argparse
import json
from pathlib import Path

import cera

DEFAULT_LR, WEIGHT_DECAY = 1e-4, 0.1
"""The benchmark's settings of AdamW; an entry that changes one of them must name both."""


def main(arguments: list[str] | None = None) -> None:
    """Write one entry and print its directory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("benchmark", type=Path, help="directory of the benchmark, in which experiments/ is")
    parser.add_argument("--rank", type=int, default=32, help="rank of CeRA (default: 32)")
    parser.add_argument("--scaling", type=float, default=1.0, help="the scalar s (default: 1)")
    parser.add_argument("--lr", type=float, default=DEFAULT_LR, help="learning rate (default: the benchmark's, 1e-4)")
    options = parser.parse_args(arguments)
    config = cera.CeraConfig(r=options.rank, scaling=options.scaling, task_type="CAUSAL_LM")
    print(write_entry(options.benchmark, config, options.lr))


def write_entry(benchmark: Path, config: cera.CeraConfig, lr: float) -> Path:
    """Write an entry and return its directory, which must not exist."""
    name = f"llama-3.2-3B-rank{config.r}"
    if config.scaling != 1.0:
        name += f"-s{config.scaling:g}"
    if lr != DEFAULT_LR:
        name += f"-lr{lr:g}"
    folder = benchmark / "experiments" / "cera" / name
    folder.mkdir(parents=True)
    config.save_pretrained(str(folder))
    if lr != DEFAULT_LR:
        parameters = {"optimizer_kwargs": {"lr": lr, "weight_decay": WEIGHT_DECAY}}
        (folder / "training_params.json").write_text(json.dumps(parameters, indent=2) + "\n")
    return folder


if __name__ == "__main__":
    main()
