"""What it costs to follow the spectra through training: ``SpectralTracker`` in a run of the demo's configuration.

    python -m benchmarks.tracking --interval 50 --steps 100 --out FILE

trains in a process of its own, and is what the benchmark runs.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Goal, Result, Row
from benchmarks.process import REPOSITORY, worker
from cera.cli.compose import compose

CONFIG = REPOSITORY / "configs" / "smol_cera.yaml"


def run(quick: bool) -> Result:
    """Goal: at most 1% of the time of training, at the interval of the demo's configuration.

    The share is the tracker's time at a validation over that of the training steps between two validations; the time of
    the validations themselves is left out of the whole, so the true share is smaller. Quick runs validate more often
    than the configuration does, and scale. Floor: for each layer one QR decomposition in fp64 of its latents at the n
    tokens that are read, ``2 n r^2`` operations.
    """
    interval = compose(CONFIG)["trainer"]["val_check_interval"]
    return measure(interval, every=4 if quick else interval, validations=2)


def measure(interval: int, every: int, validations: int, options: Sequence[str] = ()) -> Result:
    """A run that validates every so many steps, scaled to validations every ``interval`` steps.

    Args:
        interval: Steps between two validations, of which the share is told.
        every: Steps between two validations that are made.
        validations: How many are made.
        options: Further arguments of ``train.py``.
    """
    steps = ["--interval", str(every), "--steps", str(every * validations)]
    found = worker("benchmarks.tracking", *steps, *options)
    step = median(found["steps"])
    what = f"spectral tracking every {interval} steps: share of training time"
    row = Row(what, [seconds / (interval * step) for seconds in found["tracking"]], Goal("<=", 0.01))
    return Result("tracking", [row], "bfloat16", {"interval": interval, "measured_every": every, **found})


def train_tracked(interval: int, steps: int, out: Path, options: Sequence[str]) -> Any:
    """Run ``train.py`` with the demo's configuration, nothing saved or answered; returns its exit status."""
    import train

    with tempfile.TemporaryDirectory() as folder:
        return train.main(
            [
                f"--config={CONFIG}",
                f"--runs={folder}",
                f"--trainer.max_steps={steps}",
                f"--trainer.val_check_interval={interval}",
                "--trainer.num_sanity_val_steps=0",
                "--trainer.limit_val_batches=2",  # as many as the tracker reads
                "--trainer.enable_checkpointing=false",
                "--trainer.enable_progress_bar=false",
                "--answer_tokens=0",
                "--trainer.callbacks+=benchmarks.lightning_clock.TrackerClock",
                f"--trainer.callbacks.path={out}",
                *options,
            ]
        )


def main() -> None:
    """Train; ``--out`` gets what ``TrackerClock`` notes. Further arguments are ``train.py``'s."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interval", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options, others = parser.parse_known_args()
    sys.exit(train_tracked(options.interval, options.steps, options.out, others))


if __name__ == "__main__":
    main()
