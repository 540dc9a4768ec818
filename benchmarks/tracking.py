"""Cost of tracking the spectra during training: ``SpectralTracker`` in a run of the demo's configuration.

    python -m benchmarks.tracking --interval 50 --steps 100 --out FILE

trains in a process of its own; the benchmark runs this command.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Goal, RatioRow, Result
from benchmarks.process import REPOSITORY, worker
from cera.cli.compose import compose

CONFIG = REPOSITORY / "configs" / "smol_cera.yaml"


def run(quick: bool) -> Result:
    """Goal: at most 1% of the training time, at the interval of the demo's configuration.

    The share is the tracker's time at a validation over the time of the training steps between two validations. The
    validations themselves are not counted as training time, so the true share is smaller. Quick runs validate more
    often than configured, and scale the share. Floor: one QR decomposition in fp64 per layer, of its latents at the n
    tokens that are read, ``2 n r^2`` operations.
    """
    interval = compose(CONFIG)["trainer"]["val_check_interval"]
    return measure(interval, measured_interval=4 if quick else interval, validations=2)


def measure(interval: int, measured_interval: int, validations: int, options: Sequence[str] = ()) -> Result:
    """Measure a run that validates every ``measured_interval`` steps, and scale the share to every ``interval`` steps.

    Args:
        interval: Steps between two validations for which the share is reported.
        measured_interval: Steps between two validations of the run.
        validations: Number of validations of the run.
        options: Further arguments of ``train.py``.
    """
    steps = ["--interval", str(measured_interval), "--steps", str(measured_interval * validations)]
    measured = worker("benchmarks.tracking", *steps, *options)
    step = median(measured["steps"])
    what = f"spectral tracking every {interval} steps: share of training time"
    row = RatioRow(what, [seconds / (interval * step) for seconds in measured["tracking"]], Goal("<=", 0.01))
    return Result(
        "tracking", [row], "bfloat16", {"interval": interval, "measured_every": measured_interval, **measured}
    )


def train_tracked(interval: int, steps: int, out: Path, options: Sequence[str]) -> Any:
    """Train with the demo's configuration, without saving and answering; return the exit status."""
    from cera.cli.train import main as train

    with tempfile.TemporaryDirectory() as folder:
        return train(
            [
                f"--config={CONFIG}",
                f"--runs={folder}",
                f"--trainer.max_steps={steps}",
                f"--trainer.val_check_interval={interval}",
                "--trainer.num_sanity_val_steps=0",
                "--trainer.limit_val_batches=2",  # the number that the tracker reads
                "--trainer.enable_checkpointing=false",
                "--trainer.enable_progress_bar=false",
                "--answer_tokens=0",
                "--trainer.callbacks+=benchmarks.lightning_clock.TrackerClock",
                f"--trainer.callbacks.path={out}",
                *options,
            ]
        )


def main() -> None:
    """Train, and write the records of ``TrackerClock`` to ``--out``; further arguments are those of ``train.py``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--interval", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options, others = parser.parse_known_args()
    sys.exit(train_tracked(options.interval, options.steps, options.out, others))


if __name__ == "__main__":
    main()
