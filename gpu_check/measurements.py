"""What is measured on the device: ``python -m gpu_check.measurements NAME --base DIRECTORY --device cuda --out FILE``.

Each measurement is a process of its own, and writes one ``Result`` of ``benchmarks.harness``. On a CPU sizes are small,
and goals, which are those of a GPU, are left out.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model

from benchmarks import layer, training
from benchmarks.harness import Goal, RatioRow, Result, interleaved, ratios, timed
from benchmarks.peers import BY_LENGTH, PACKED
from benchmarks.process import BenchmarkError
from benchmarks.together import Sweep, passes
from cera import CeraConfig
from cera.memory.roofline import H100
from cera.models.backbone import load_model

TARGETS = ["q_proj", "v_proj"]
PEAKS = {"H100": H100.flops, "H200": H100.flops}
"""Operations per second of dense bf16 products by the data sheet, by a part of the GPU's name."""


def training_rates(base: Path, device: str) -> Result:
    """Useful tokens per second of ``train.py`` against TRL and transformers' Trainer, and the utilization (MFU).

    Goals: 1.5 times the best of the peers; an MFU of 40%, by ``cera.training.throughput.TrainingFlops``.
    """
    gpu = device == "cuda"
    steps, options = (12, ["--batch_size", "8", "--max_length", "1024"]) if gpu else (4, ["--max_length", "256"])
    by_length = {**BY_LENGTH, **({"per_device_train_batch_size": 48} if gpu else {})}  # about the tokens of our rows
    contenders: dict[str, tuple[str, Mapping[str, Any]]] = {
        "cera": ("cera", {}),
        "Trainer + LoRA, by length": ("trainer", by_length),
        "Trainer + LoRA, by length, bf16 adapter": ("trainer", {**by_length, "adapter_dtype": "bfloat16"}),
    }
    if gpu:
        contenders |= {
            "cera_compiled": ("cera_compiled", {}),
            "Trainer + LoRA, by length, torch_compile": ("trainer", {**by_length, "torch_compile": True}),
            "TRL + LoRA, packing": ("trl", PACKED),
        }

    runs, failed = {}, {}
    for key, (name, settings) in contenders.items():
        more = ["--device", device, "--settings", json.dumps(settings), *options]
        try:
            runs[key] = training.contending(str(base), base / "train.jsonl", more, name, steps)()
        except BenchmarkError as error:  # of one contender, such as code that does not compile here
            failed[key] = str(error)
    if "cera" not in runs or runs.keys() <= {"cera", "cera_compiled"}:
        raise BenchmarkError("; ".join(failed.values()))
    rates = {key: training.tokens_per_second(run["steps"]) for key, run in runs.items()}
    ours = max((key for key in rates if key.startswith("cera")), key=rates.__getitem__)
    peers = [key for key in rates if not key.startswith("cera")]
    best = max(peers, key=rates.__getitem__)
    rows = [RatioRow(f"training: tokens/s of {ours} / the best peer", [rates[ours] / rates[best]], Goal(">=", 1.5))]
    rows += [RatioRow(f"training: tokens/s of {ours} / {name}", [rates[ours] / rates[name]]) for name in peers]
    counted = runs["cera"]["steps"][training.WARMUP :]
    flops_per_token = sum(step["flops"] for step in counted) / sum(step["tokens"] for step in counted)
    peak, source = peak_flops(device)
    rows += [
        RatioRow(f"training: MFU of {name}, of {source}", [rates[name] * flops_per_token / peak], _mfu_goal(name, ours))
        for name in rates
    ]
    details = {"tokens_per_second": rates, "peak_flops": peak, "runs": runs, "failed": failed}
    return Result("training", rows, "bfloat16", details)


def _mfu_goal(name: str, ours: str) -> Goal | None:
    return Goal(">=", 0.4) if name == ours else None


def peak_flops(device: str) -> tuple[float, str]:
    """Return the peak operations per second of bf16 products, and its source: a data sheet, or a large product."""
    if device == "cuda":
        for part, flops in PEAKS.items():
            if part in torch.cuda.get_device_name():
                return flops, "the data sheet"
    size = 8192 if device == "cuda" else 1024
    left, right = torch.randn(2, size, size, dtype=torch.bfloat16, device=device)
    product = partial(torch.mm, left, right)
    product()
    seconds = timed(product, 0.3, torch.cuda.synchronize if device == "cuda" else None)()
    return 2 * size**3 / seconds, "a large product here"


def layer_time(base: Path, device: str) -> Result:
    """Forward and backward of a pair of adapted layers. Goal: 1.02 times the time of LoRA in bf16."""
    if device == "cpu":
        return layer.compare([(layer.SMOL, 16)], tokens=256, rounds=3, at_least=0.05)
    sizes = [(layer.LLAMA_3_8B, r) for r in (16, 64, 128, 512)]
    result = layer.compare(sizes, tokens=8192, rounds=10, at_least=0.05, device=device)
    ours = ": time of CeRA / LoRA in bf16"
    rows = [replace(row, goal=Goal("<=", 1.02) if row.what.endswith(ours) else None) for row in result.rows]
    return replace(result, rows=rows)


def decoding_time(base: Path, device: str) -> Result:
    """Greedy decoding of one sequence, plain and with CUDA graphs. Goal: 1.02 times the time of LoRA."""
    gpu = device == "cuda"
    tokens, rounds, r = (64, 5, 64) if gpu else (8, 3, 8)
    adapters: dict[str, PeftConfig | None] = {
        "base": None,
        "cera": CeraConfig(r=r, target_modules=TARGETS, task_type="CAUSAL_LM"),
        "lora": LoraConfig(r=r, lora_alpha=2 * r, target_modules=TARGETS, task_type="CAUSAL_LM"),
    }
    wait = torch.cuda.synchronize if gpu else None
    rows, details = [], {}
    for graphs in (False, True) if gpu else (False,):
        contenders: dict[str, Callable[[], float]] = {}
        for name, config in adapters.items():
            model: Any = load_model(str(base), torch.bfloat16).to(device)
            if config is not None:
                model = get_peft_model(model, config, autocast_adapter_dtype=False)
            model.eval()
            decode = partial(_decode, model, tokens, graphs)
            for _ in range(2):  # compiles, and records graphs
                decode()
            contenders[name] = timed(decode, wait=wait)
        seconds = interleaved(contenders, rounds)
        how = f"decoding{' with CUDA graphs' if graphs else ''}, r={r}"
        rows += [
            RatioRow(f"{how}: time of CeRA / LoRA", ratios(seconds["cera"], seconds["lora"]), Goal("<=", 1.02)),
            RatioRow(f"{how}: time of CeRA / base alone", ratios(seconds["cera"], seconds["base"])),
        ]
        details[how] = {name: [second / tokens for second in rounds_] for name, rounds_ in seconds.items()}
    return Result("decoding", rows, "bfloat16", details)


@torch.inference_mode()
def _decode(model: Any, tokens: int, graphs: bool) -> None:
    """Generate exactly ``tokens`` tokens; with ``graphs`` transformers compiles the model on a GPU, for CUDA graphs."""
    ids = torch.arange(3, 67, device=model.device)[None]
    options: dict[str, Any] = {
        "do_sample": False,
        "min_new_tokens": tokens,
        "max_new_tokens": tokens,
        "use_cache": True,
    }
    options |= {"cache_implementation": "static", "disable_compile": not graphs}
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)


def adapters_together(base: Path, device: str) -> Result:
    """One pass of N adapters over one copy of the base, against N passes. Goal: N = 16 at least 4 times as fast."""
    gpu = device == "cuda"
    sizes = {"r": 64, "runs": 16, "rows": 1, "length": 256} if gpu else {"r": 8, "runs": 2, "rows": 2, "length": 64}
    sweep = Sweep(base.name, "", str(base), torch.bfloat16, **sizes)
    measured, details = passes(sweep, rounds=5 if gpu else 2, device=device)
    seconds = details["pass_seconds"]
    n = sweep.runs
    gain = ratios([n * one for one in seconds["1"]], seconds[str(n)])
    rows = [*measured, RatioRow(f"together: tokens/s of {n} adapters in one pass / one", gain, Goal(">=", 4))]
    return Result("together", rows, "bfloat16", details)


MEASUREMENTS: dict[str, Callable[[Path, str], Result]] = {
    "training": training_rates,
    "layer": layer_time,
    "decoding": decoding_time,
    "together": adapters_together,
}


def main() -> None:
    """Measure, and write the result as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", choices=MEASUREMENTS)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    result = MEASUREMENTS[options.name](options.base, options.device)
    if options.device == "cpu":
        result = replace(result, rows=[replace(row, goal=None) for row in result.rows])
    rows = [
        {
            "what": row.what,
            "median": row.median,
            "ratios": list(row.ratios),
            "goal": str(row.goal or ""),
            "reached": row.reached,
        }
        for row in result.rows
    ]
    options.out.write_text(json.dumps({**asdict(result), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
