"""The answers of ``cera train predict``, gathered from all ranks and written to the run directory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning import Trainer

from cera.cli.errors import UsageError
from cera.runs.files import replacing

FILE = "predictions.jsonl"


def check_predictions(run_dir: Path) -> None:
    """Raise ``UsageError`` if the run directory has predictions already, which might be another checkpoint's."""
    if (run_dir / FILE).exists():
        raise UsageError(f"{run_dir / FILE} exists already; move it away, and predict again.")


def save_predictions(trainer: Trainer, batches: Sequence[list[dict[str, Any]]], run_dir: Path) -> None:
    """Write one JSON line per answer to ``predictions.jsonl`` and print it, on the first rank.

    Args:
        trainer: The trainer that predicted.
        batches: This rank's records, with ``prompt`` and ``answer``.
        run_dir: The run directory; it is created if need be.
    """
    records = [record for batch in batches for record in batch]
    if trainer.world_size > 1:
        by_rank: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(by_rank, records)
        records = [record for share in by_rank for record in share]
    if not trainer.is_global_zero:
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / FILE
    with replacing(path) as unfinished, unfinished.open("w") as file:
        for record in records:
            print(json.dumps(record), file=file)
            print(f"--- prompt ---\n{record['prompt']}\n--- answer ---\n{record['answer']}\n")
    print(f"wrote {len(records)} answers to {path}")
