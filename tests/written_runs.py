"""Writes run directories as a training leaves them, without a training, for tests of what reads them."""

from pathlib import Path

import yaml

LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 64, "lora_alpha": 128}}
CERA = {"class_path": "cera.CeraConfig", "init_args": {"r": 64, "dropout": 0.1}}


def write_run(
    path: Path,
    adapter: dict | None = None,
    learning_rate: float = 3e-4,
    curve: dict[int, float] | None = None,
    seed: int = 42,
    max_steps: int = 100,
    **trainer,
) -> Path:
    """A run directory: config.yaml and, with a curve of perplexities by step, metrics.csv as Lightning writes it."""
    path.mkdir(parents=True)
    config = {
        "seed_everything": seed,
        "trainer": {"max_steps": max_steps, "default_root_dir": str(path), **trainer},
        "model": {"base": "some/model", "adapter": adapter or CERA, "learning_rate": learning_rate, "warmup": 0.03},
        "data": {"dataset": {"class_path": "cera.data.ReasoningGymWordProblems"}, "batch_size": 4},
        "name": path.name,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    if curve is not None:
        rows = ["epoch,step,train/loss,val/perplexity"]
        for step, perplexity in curve.items():  # numbered from 0; the base, before the first, is in no epoch
            rows.append(f",0,,{perplexity}" if step == 0 else f"0,{step - 1},,{perplexity}")
        (path / "metrics.csv").write_text("\r\n".join(rows) + "\r\n", newline="")
    return path
