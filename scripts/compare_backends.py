"""Evaluates an adapter on GSM8K through transformers and through vLLM, and compares the records of both.

    python scripts/compare_backends.py BASE ADAPTER --python serving/.venv/bin/python --data-files test.jsonl

BASE is a directory or a name on the hub that vLLM can read. Answers are greedy, in fp32. Where two differ, the first
tokens at which they do are weighed: rounding can only exchange tokens whose log-probabilities are nearly the same. The
result is results/serving/gsm8k.json, which docs/serving.md reads; records stay in ``--out``, and a comparison that was
stopped goes on from there.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from cera.evaluation.records import Record, read
from cera.models.backbone import load_tokenizer
from cera.models.generate import encode
from cera.runs.environment import environment
from cera.runs.saved_adapter import SavedAdapter

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = REPOSITORY / "results" / "serving" / "gsm8k.json"
BACKENDS = ("transformers", "vllm")


def main() -> None:
    """Evaluate, compare and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("base", help="the base model")
    parser.add_argument("adapter", help="a run directory, or an adapter's")
    parser.add_argument("--python", required=True, help="Python of the environment that has cera-vllm")
    parser.add_argument("--data-files", required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--limit", type=int, default=200, help="problems (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of an answer (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_backends"), help="directory of the records")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    for backend in BACKENDS:
        subprocess.run(command(options, backend), check=True)
    folders = {backend: options.out / backend / "eval" / "gsm8k" for backend in BACKENDS}
    ours, theirs = (read(folders[backend] / "records.jsonl") for backend in BACKENDS)
    saved = SavedAdapter.find(options.adapter, options.base)
    found = {
        **compare(ours, theirs, saved),
        "settings": {"limit": options.limit, "tokens": options.tokens, "batch_size": options.batch_size},
        "adapter": {name: saved.settings[name] for name in ("peft_type", "r", "target_modules")},
        "backends": {backend: figures(folder / "eval.json") for backend, folder in folders.items()},
        "environment": {**environment(), "command": None},
    }
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: found[name] for name in ("problems", "same", "backends")}, indent=1))


def command(options: argparse.Namespace, backend: str) -> list[str]:
    """Return the command that evaluates through a backend."""
    given = [
        sys.executable, "-m", "cera", "evaluate", f"--config={REPOSITORY / 'configs' / 'eval_gsm8k.yaml'}",
        f"--base={options.base}", f"--adapter={options.adapter}", "--dtype=float32", f"--out={options.out / backend}",
        f"--backend={backend}", f"--evaluation.task.init_args.data_files={os.path.abspath(options.data_files)}",
        f"--evaluation.task.init_args.limit={options.limit}", f"--evaluation.batch_size={options.batch_size}",
        f"--evaluation.sampling.max_new_tokens={options.tokens}",
    ]  # fmt: skip
    return [*given, f"--vllm.python={options.python}"] if backend == "vllm" else given


def figures(file: Path) -> dict[str, float]:
    """Return what one evaluation took: seconds from the first request to the last record, and tokens of answers."""
    report = json.loads(file.read_text())
    return {"seconds": report["seconds"], "tokens": report["tokens"], "pass@1": report["metrics"]["pass@1"]["value"]}


def compare(ours: list[Record], theirs: list[Record], saved: SavedAdapter) -> dict[str, Any]:
    """Return how many records are the same, and what differs in the others.

    Raises:
        ValueError: The records are not of the same problems and prompts.
    """
    for one, other in zip(ours, theirs, strict=True):
        if (one["key"], one["prompt"]) != (other["key"], other["prompt"]):
            raise ValueError(f"the records must be of the same problems, got {one['key']} and {other['key']}.")
    pairs = list(zip(ours, theirs, strict=True))
    same = {
        name: sum(a[field] == b[field] for a, b in pairs)
        for name, field in (("answers", "samples"), ("verdicts", "correct"))
    }
    differing = [(a, b) for a, b in pairs if a["samples"] != b["samples"]]
    return {"problems": len(pairs), "same": same, "differences": explain(differing, saved) if differing else []}


@torch.no_grad()
def explain(pairs: list[tuple[Record, Record]], saved: SavedAdapter) -> list[dict[str, Any]]:
    """Return for each two answers that differ where they part, and how far apart transformers finds the two tokens."""
    tokenizer, model = load_tokenizer(saved.base), saved.load(torch.float32, "cpu").eval()
    found = []
    for one, other in pairs:
        first, second = (encode(tokenizer, record["samples"][0]) for record in (one, other))
        place = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
        difference: dict[str, Any] = {"key": one["key"], "verdicts": [one["correct"][0], other["correct"][0]]}
        if place is not None:
            read_so_far = torch.tensor([encode(tokenizer, one["prompt"]) + first[:place]])
            row = model(read_so_far).logits[0, -1].log_softmax(-1)
            difference |= {"token": place, "distance": float(row[first[place]] - row[second[place]])}
        found.append(difference)
    return found


if __name__ == "__main__":
    main()
