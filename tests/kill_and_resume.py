"""Kills a small run at random moments and resumes it, until it ends; then compares each of its files.

    python tests/kill_and_resume.py --kills 200 --folder /tmp/kills

Each attempt trains in a process that is forked from this one, which has imported everything, or, one in ten, in a new
one, so that it may be killed during its imports. Of the forked ones half are killed when they are about to change a
file of the run (the moments that can leave half of something), the others at random times, from the first moment on.
SIGKILL cannot be caught: what is on disk is all that is left. ``compare_runs.py`` lists what may differ, with reasons.

``results.jsonl`` in the folder has a line for each run: where it was killed, and what differs. The same command goes on
after the last line. The exit status is 1 if anything differs; such a run stays in the folder.
"""

import argparse
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))
started = time.monotonic()

from compare_runs import differences
from conftest import make_tiny_llama

from cera.cli import train

IMPORTS = time.monotonic() - started
"""How long a process imports, in seconds."""

WATCHED = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
"""Python's audit events before a file or directory is changed."""

LONGEST = 300
"""After how many seconds an attempt that is not to be killed counts as one that hangs."""

CALLBACKS = (
    '[{"class_path": "cera.callbacks.GenerationSamples", "init_args": {"problems": 1, "max_new_tokens": 4}},'
    ' {"class_path": "cera.callbacks.LRRobustness"}]'
)


def arguments(base: str, runs: Path) -> list[str]:
    """Return the command line of a run of 12 steps with 4 validations, over two epochs, with all callbacks.

    Of the validations two are of a step with a checkpoint, and two are not.
    """
    return [
        "fit", "--config", "configs/smol_cera.yaml", f"--model.base={base}", f"--runs={runs}", "--name=test",
        "--model.adapter.init_args.r=4", "--model.learning_rate=0.01", "--data.dataset.init_args.size=22",
        "--data.validation_rows=4", "--data.batch_size=1", "--data.packing=false", "--trainer.precision=32-true",
        "--trainer.max_steps=12", "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=6",
        "--trainer.num_sanity_val_steps=-1", "--checkpoint_every=2", "--answer_tokens=2",
        f"--trainer.callbacks+={CALLBACKS}",
    ]  # fmt: skip


class Moment(NamedTuple):
    """When an attempt is killed.

    Attributes:
        kind: ``"change"`` or ``"time"`` of a forked process, or ``"cold"``, the time of a new one.
        value: Number of changes of files before, or seconds since the start.
    """

    kind: str
    value: float

    @classmethod
    def draw(cls, generator: random.Random, whole: dict[str, Any]) -> "Moment":
        """Draw a moment of a run that takes ``whole["seconds"]`` after the imports, with ``whole["changes"]``."""
        kind = generator.choices(["change", "time", "cold"], [9, 9, 2])[0]
        if kind == "change":
            return cls(kind, generator.randrange(whole["changes"]))
        return cls(kind, generator.uniform(0, whole["seconds"] + (IMPORTS if kind == "cold" else 0)))


def attempt(options: list[str], log: Path, moment: Moment | None, run_dir: Path) -> int:
    """Run ``cera train`` in another process until ``moment``; return its exit status, or minus the signal."""
    seconds = moment.value if moment and moment.kind != "change" else LONGEST
    process = os.fork()
    if process == 0:
        start(log)
        if moment and moment.kind == "cold":
            os.execv(sys.executable, [sys.executable, "train.py", *options])
        if moment and moment.kind == "change":
            before_each_change(run_dir, kill_after(int(moment.value)))
        train_and_exit(options)
    try:
        return wait(process, seconds)
    finally:
        kill_group(process)


def start(log: Path) -> None:
    """Let this process be the first of a group, and print to ``log``."""
    os.setpgid(0, 0)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)


def train_and_exit(options: list[str]) -> None:
    """Run ``cera train`` in this process, which ends with its status."""
    status = 70
    try:
        status = train.main(options)
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait(process: int, seconds: float) -> int:
    """Return the exit status of a process, which is killed after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            kill_group(process)
            return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        time.sleep(0.002)


def kill_group(process: int) -> None:
    """Kill a process and those that it has started, unless all have ended."""
    for kill in (os.kill, os.killpg):  # it may have no group yet
        try:
            kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def before_each_change(run_dir: Path, call: Callable[[], object]) -> None:
    """Let this process call ``call`` before each change of a file or directory of the run."""

    def hook(event: str, details: tuple) -> None:
        if event not in WATCHED or not isinstance(details[0], str | bytes | os.PathLike):
            return
        reads = event == "open" and not (details[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        path = Path(os.path.abspath(os.fsdecode(details[0])))
        if not reads and (path == run_dir or run_dir in path.parents):
            call()

    sys.addaudithook(hook)


def kill_after(calls: int) -> Callable[[], None]:
    """Return a function that kills this process group when it has been called so often before."""
    left = itertools.count(calls, -1)

    def count() -> None:
        if next(left) == 0:
            os.killpg(0, signal.SIGKILL)

    return count


def uninterrupted(base: str, folder: Path) -> dict[str, Any]:
    """Run to the end in a new process; return how many seconds and changes of files a forked one takes."""
    known, log = folder / "whole.json", folder / "log"
    if known.exists():
        return json.loads(known.read_text())
    for runs in ("counted", "whole"):
        shutil.rmtree(folder / runs, ignore_errors=True)
    reading, writing = os.pipe()
    before, process = time.monotonic(), os.fork()
    if process == 0:
        start(log)
        before_each_change(folder / "counted" / "test", lambda: os.write(writing, b"."))
        train_and_exit(arguments(base, folder / "counted"))
    status, seconds = wait(process, LONGEST), time.monotonic() - before
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        whole = {"seconds": seconds, "changes": len(file.read())}
    runs = folder / "whole"
    if status != 0 or attempt(arguments(base, runs), log, Moment("cold", LONGEST), runs / "test") != 0:
        raise RuntimeError(log.read_text())
    known.write_text(json.dumps(whole))
    return whole


def interrupted(base: str, runs: Path, log: Path, moments: list[Moment]) -> dict[str, Any]:
    """Run to the end, with an attempt for each of ``moments`` until it has ended; return the kills and differences."""
    shutil.rmtree(runs, ignore_errors=True)
    run_dir, kills, wrong = runs / "test", [], []
    for moment in [*moments, None]:
        resume = ["--ckpt_path=last"] if run_dir.exists() else []
        status = attempt([*arguments(base, runs), *resume], log, moment, run_dir)
        if status != -signal.SIGKILL or moment is None:
            if status != 0:
                wrong = [f"status {status} with {moment or 'no kill'}: {log.read_text()[-2000:]}"]
            break
        kills.append(
            {"kind": moment.kind, "at": round(moment.value, 3), "place": place(run_dir), "last": last(run_dir)}
        )
    return {"kills": kills, "differences": wrong}


def place(run_dir: Path) -> str:
    """Return how far a run has come, by its checkpoints."""
    if not (run_dir / "config.yaml").exists():
        return "before config.yaml"
    steps = [int(path.stem.partition("=")[2]) for path in (run_dir / "checkpoints").glob("step=*.ckpt")]
    return f"after the checkpoint of step {max(steps):2}" if steps else "before the first checkpoint"


def last(run_dir: Path) -> str:
    """Return the file of a run that was written last, without numbers."""
    paths = [path for path in run_dir.rglob("*") if path.is_file()]
    newest = max(paths, key=lambda path: path.stat().st_mtime_ns, default=run_dir)
    return re.sub(r"tfevents.*", "tfevents", re.sub(r"=\d+", "=N", str(newest.relative_to(run_dir))))


def main() -> int:
    """Compare interrupted runs with an uninterrupted one; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--kills", type=int, default=200, help="number of kills")
    parser.add_argument("--kills_per_run", type=int, default=4, help="number of kills of one run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--folder", type=Path, help="where to work; by default a folder that is removed")
    options = parser.parse_args()
    os.chdir(REPOSITORY)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        results = compare(folder, options.kills, options.kills_per_run, options.seed)
    return summarize(results)


def compare(folder: Path, kills: int, kills_per_run: int, seed: int) -> list[dict[str, Any]]:
    """Kill runs in ``folder`` until there are so many kills, and return the results of all of them."""
    base, results = str(folder / "base"), folder / "results.jsonl"
    make_tiny_llama(Path(base))
    whole = uninterrupted(base, folder)
    print(
        f"uninterrupted: {IMPORTS:.1f} s of imports, {whole['seconds']:.1f} s, {whole['changes']} changes", flush=True
    )
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    while (left := kills - sum(len(result["kills"]) for result in done)) > 0:
        number = len(done)
        generator = random.Random(f"{seed} {number}")
        moments = [Moment.draw(generator, whole) for _ in range(min(kills_per_run, left))]
        runs = folder / f"killed{number}"
        result = interrupted(base, runs, folder / "log", moments)
        result["differences"] = result["differences"] or differences(runs / "test", folder / "whole" / "test")
        if not result["differences"]:
            shutil.rmtree(runs)
        with results.open("a") as file:
            file.write(json.dumps(result) + "\n")
        done.append(result)
        print(f"run {number}: {len(result['kills'])} kills, {kills - left + len(result['kills'])} in all", flush=True)
        for difference in result["differences"]:
            print(f"    {difference}", flush=True)
    return done


def summarize(results: list[dict[str, Any]]) -> int:
    """Print where runs were killed, and the number of differences; return 1 if there are any."""
    kills = [kill for result in results for kill in result["kills"]]
    for key in ("kind", "place", "last"):
        for value, number in sorted(Counter(kill[key] for kill in kills).items()):
            print(f"{number:4} kills, {key}: {value}")
    wrong = sum(len(result["differences"]) for result in results)
    print(f"{len(kills)} kills of {len(results)} runs, {wrong} differences")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
