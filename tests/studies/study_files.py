"""Small studies for tests, and a stand-in for ``cera train`` that writes the files of a run at once."""

import sys
from pathlib import Path

import yaml

from cera.studies.study import Study

TRAINER = """
import fcntl, json, os, pathlib, signal, sys, time
arguments = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
steps, rate, wait = 6, float(arguments["model.learning_rate"]), float(arguments.get("wait", 0.02))
run = pathlib.Path(arguments["runs"], arguments["name"])
if rate < 0:
    sys.exit("Traceback\\nerror: model.learning_rate must be positive, got %s." % rate)
run.mkdir(parents=True, exist_ok=True)
lock = open(run / ".lock", "a")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
adapter = {"class_path": "cera.CeraConfig", "init_args": {"r": 8}}
config = {"model": {"adapter": adapter, "learning_rate": rate}, "trainer": {"max_steps": steps}}
(run / "config.yaml").write_text(json.dumps(config))
(run / "environment.json").write_text(json.dumps({"trainable_parameters": 1000}))
metrics, begun = run / "metrics.csv", run / "begun"
done = len(metrics.read_text().splitlines()) - 1 if metrics.exists() else 0
with begun.open("a") as file:
    file.write("resumed at %d\\n" % done if "ckpt_path" in arguments else "new\\n")
kills = len(begun.read_text().splitlines()) <= int(arguments.get("kills", 0))
stopped = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: stopped.append(number))
with metrics.open("a") as file:
    if not done:
        file.write("epoch,step,train/loss,val/perplexity\\n")
    for step in range(done, steps):
        time.sleep(wait)
        if kills and step > done:
            os.kill(os.getpid(), signal.SIGKILL)
        if stopped:
            sys.exit(128 + stopped[0])
        seed = int(arguments.get("seed_everything", 0))
        last = 2 + 100 * abs(rate - 0.01) + 0.1 * seed if step == steps - 1 else ""
        last = "nan" if rate > 1 and last else last
        file.write("0,%d,1.5,%s\\n" % (step, last))
        file.flush()
"""


def write_files(folder: Path) -> None:
    """Write a base configuration and two adapters, which the stand-in does not read."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("base", "cera", "lora"):
        (folder / f"{name}.yaml").write_text("")


def content(**fields) -> dict:
    """The content of a study's file: two adapters at two rates."""
    axes = {"adapter": {"lora": "lora.yaml", "cera": "cera.yaml"}, "learning_rate": ["1e-2", "3e-2"]}
    return {"name": "small", "base": "base.yaml", "axes": axes, **fields}


def study(folder: Path, **fields) -> Study:
    """Write a study to ``folder`` and load it; its runs go there, too."""
    write_files(folder)
    (folder / "small.yaml").write_text(yaml.safe_dump(content(**fields), sort_keys=False))
    return Study.load(folder / "small.yaml", folder / "runs")


def stand_in() -> tuple[str, ...]:
    """The command in place of ``cera train``."""
    return sys.executable, "-c", TRAINER
