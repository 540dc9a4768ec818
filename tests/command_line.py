"""Runs train.py as a user does, on the tiny Llama, and reads what it leaves behind."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import REPOSITORY

from cera.cli import train

STRATEGIES = {
    "ddp": ["--trainer.strategy=ddp"],
    "zero2": ["--trainer.strategy=cera.training.DeepSpeed", "--trainer.strategy.init_args.stage=2"],
    "zero3": ["--trainer.strategy=cera.training.DeepSpeed", "--trainer.strategy.init_args.stage=3"],
}


TESTS = Path(__file__).parent


def command(base: str, runs: Path, *overrides: str, config: str = "configs/smol_cera.yaml") -> list[str]:
    """The command for a short run of ``base`` in fp32, with as little around it as possible."""
    return [
        sys.executable, "train.py", "--config", config,
        f"--model.base={base}", f"--runs={runs}", "--name=test", "--model.adapter.init_args.r=8",
        "--model.learning_rate=0.01", "--data.dataset.init_args.size=60", "--data.validation_rows=8",
        "--data.batch_size=2", "--trainer.precision=32-true", "--trainer.max_steps=8", "--trainer.val_check_interval=4",
        "--trainer.num_sanity_val_steps=0", "--checkpoint_every=3", "--answer_tokens=0", *overrides,
    ]  # fmt: skip


def two(strategy: str, batch_size: int = 2) -> list[str]:
    """Options for two processes, each with batches of ``batch_size``."""
    return [*STRATEGIES[strategy], "--trainer.devices=2", f"--data.batch_size={batch_size}"]


def environment() -> dict[str, str]:
    """One thread a process: sums in another order would blur what is compared."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS / "memory"))),  # for callbacks that are in the tests
    }


def run(arguments: list[str], expect: int = 0, timeout: float = 400) -> str:
    """Run to the end and return what was printed; any other exit status than ``expect`` fails with all of it."""
    done = subprocess.run(
        arguments, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
    printed = done.stdout + done.stderr
    assert done.returncode == expect, printed
    return printed


def run_here(monkeypatch, capsys, arguments: list[str]) -> tuple[int, str]:
    """Run in this process, for what ends before training: no time is spent on imports. Returns (status, output)."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", list(arguments[1:2]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CERA_RUN_DIR", "")  # chosen anew, and taken back at the end of the test
    monkeypatch.delenv("CERA_RUN_DIR")
    try:
        status = train.main(arguments[2:])
    except SystemExit as left:  # --print_config
        status = left.code or 0
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def start_and_signal(arguments: list[str], run_dir: Path, step: int, number: signal.Signals) -> tuple[int, str]:
    """Start a run, send it ``number`` as soon as metrics.csv shows ``step``; returns (exit status, output)."""
    process = subprocess.Popen(
        arguments, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (run_dir / "metrics.csv").exists() and max(losses(run_dir), default=-1) >= step:
            process.send_signal(number)
            break
        time.sleep(0.01)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def losses(run_dir: Path, column: str = "train/loss") -> dict[int, float]:
    """Step -> value, for one column of metrics.csv."""
    with (run_dir / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row.get(column)}
