"""Kills a small run at random moments and resumes it, until it ends; then compares each of its files.

    python tests/kill_and_resume.py --kills 200

Each attempt trains in a process that is forked from this one, which has imported everything. Half of the kills come
when the process is about to change a file of the run (the moments that can leave half of something), the others at
random times, from its first moment on. SIGKILL cannot be caught: what is on disk is all that is left.
``compare_runs.py`` lists what may differ, with reasons. The exit status is 1 if anything else does.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))

from compare_runs import differences
from conftest import make_tiny_llama

from cera.cli import train

WATCHED = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
"""Python's audit events before a file or directory is changed."""

CALLBACKS = (
    '[{"class_path": "cera.callbacks.GenerationSamples", "init_args": {"problems": 1, "max_new_tokens": 4}},'
    ' {"class_path": "cera.callbacks.LRRobustness"}]'
)


def arguments(base: str, runs: Path) -> list[str]:
    """Return the command line of a run of 12 steps with 4 validations, over two epochs, with all callbacks."""
    return [
        "fit", "--config", "configs/smol_cera.yaml", f"--model.base={base}", f"--runs={runs}", "--name=test",
        "--model.adapter.init_args.r=4", "--model.learning_rate=0.01", "--data.dataset.init_args.size=22",
        "--data.validation_rows=4", "--data.batch_size=1", "--data.packing=false", "--trainer.precision=32-true",
        "--trainer.max_steps=12", "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=6",
        "--trainer.num_sanity_val_steps=-1", "--checkpoint_every=3", "--answer_tokens=2",
        f"--trainer.callbacks+={CALLBACKS}",
    ]  # fmt: skip


@dataclass
class Moment:
    """When a process kills itself: before its n-th change of a file of the run, or after some seconds."""

    change: int | None = None
    seconds: float | None = None

    def await_in(self, run_dir: Path) -> None:
        """Let this process be killed at the moment."""
        if self.seconds is not None:
            timer = threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
            return
        left = self.change or 0

        def count() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        before_each_change(run_dir, count)


def before_each_change(run_dir: Path, call: Callable[[], None]) -> None:
    """Let this process call ``call`` before each change of a file or directory of the run."""

    def hook(event: str, details: tuple) -> None:
        if event not in WATCHED or not isinstance(details[0], str | bytes | os.PathLike):
            return
        reads = event == "open" and not (details[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        path = Path(os.path.abspath(os.fsdecode(details[0])))
        if not reads and (path == run_dir or run_dir in path.parents):
            call()

    sys.addaudithook(hook)


def attempt(options: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Run ``cera train`` in a forked process; return its exit status, or minus the signal that ended it."""
    process = os.fork()
    if process == 0:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        prepare()
        status = 70
        try:
            status = train.main(options)
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def uninterrupted(base: str, runs: Path, log: Path) -> tuple[float, int]:
    """Run to the end; return the seconds that this took, and the number of changes of files."""
    reading, writing = os.pipe()
    start = time.monotonic()
    status = attempt(
        arguments(base, runs), log, lambda: before_each_change(runs / "test", lambda: os.write(writing, b".") and None)
    )
    seconds = time.monotonic() - start
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        changes = len(file.read())
    if status != 0:
        raise RuntimeError(log.read_text())
    return seconds, changes


def interrupted(base: str, runs: Path, log: Path, moments: Iterator[Moment]) -> list[tuple[Moment, str]]:
    """Run to the end, with an attempt for each of ``moments`` until it has ended; return the kills and their places."""
    run_dir, kills = runs / "test", []
    while True:
        moment = next(moments, None)
        resume = ["--ckpt_path=last"] if run_dir.exists() else []
        prepare = partial(moment.await_in, run_dir) if moment is not None else lambda: None
        status = attempt([*arguments(base, runs), *resume], log, prepare)
        if status == 0:
            return kills
        if status != -signal.SIGKILL or moment is None:
            raise RuntimeError(f"status {status} after {kills}, then {moment}\n{log.read_text()}")
        kills.append((moment, place(run_dir)))


def place(run_dir: Path) -> str:
    """Return how far a run has come, by its files."""
    if not (run_dir / "config.yaml").exists():
        return "before config.yaml"
    steps = [int(path.stem.partition("=")[2]) for path in (run_dir / "checkpoints").glob("step=*.ckpt")]
    return f"after the checkpoint of step {max(steps):2}" if steps else "before the first checkpoint"


def main() -> int:
    """Compare interrupted runs with an uninterrupted one; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="number of kills")
    parser.add_argument("--kills_per_run", type=int, default=4, help="number of kills of one run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--folder", type=Path, help="where to work; by default a folder that is removed")
    options = parser.parse_args()
    os.chdir(REPOSITORY)
    with tempfile.TemporaryDirectory() as temporary:
        return compare(options.folder or Path(temporary), options.kills, options.kills_per_run, options.seed)


def compare(folder: Path, kills: int, kills_per_run: int, seed: int) -> int:
    """Kill runs in ``folder``, and print and count the differences; return 1 if there are any."""
    base, log, generator = str(folder / "base"), folder / "log", random.Random(seed)
    make_tiny_llama(Path(base))
    seconds, changes = uninterrupted(base, folder / "whole", log)
    print(f"uninterrupted: {seconds:.1f} s, {changes} changes of files", flush=True)

    def moment() -> Moment:
        if generator.random() < 0.5:
            return Moment(change=generator.randrange(changes))
        return Moment(seconds=generator.uniform(0, seconds))

    places: Counter = Counter()
    wrong = 0
    while places.total() < kills:
        runs = folder / f"killed{places.total()}"
        done = interrupted(base, runs, log, (moment() for _ in range(min(kills_per_run, kills - places.total()))))
        places.update(where for _, where in done)
        differing = differences(runs / "test", folder / "whole" / "test")
        for difference in differing:
            print(f"{runs}, killed {done}: {difference}", flush=True)
        wrong += len(differing)
        if not differing:
            shutil.rmtree(runs)
    for where, number in sorted(places.items()):
        print(f"{number:4} kills {where}")
    print(f"{places.total()} kills, {wrong} differences")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
