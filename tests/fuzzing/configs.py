"""Configurations and command lines that are wrong at random: each is parsed, or refused in one line."""

import contextlib
import copy
import functools
import io
import json
import operator
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from cera.cli import train
from cera.cli.compose import compose
from cera.cli.training_cli import TrainingCLI
from cera.evaluation import command as evaluate
from fuzzing.texts import VALUES, fuzzed_text, fuzzed_value

CLASSES = [
    "cera.CeraConfig", "peft.LoraConfig", "cera.callbacks.Throughput", "cera.data.SlimOrca", "os.system",
    "cera.nothing", "cera.training.DeepSpeed", "cera.evaluation.tasks.MATH", "Throughput", ".",
    "lightning.pytorch.callbacks.Timer",
]  # fmt: skip
STRINGS = [
    "runs/x", "a.yaml", "null", "nan", "-.inf", "1_000", "0o17", "auto", "16-mixed", "32-true", "bf16-true", "64",
    "ddp", "cpu", "gpu", "tpu", "1,", "drop", "nf4", "float32", "fsdp", "none", "x" * 300, "a/b", "..",
    "/nowhere/x", "é",
    "${name}",
]  # fmt: skip
FRAGMENTS = [
    "\t", "- ", ": ", "{", "]", "&a ", "*a", "!!python/object:os.system ", "!!int ", "<<: *a", "? ", "| ", "---\n",
    "#", "\0", "\ud800", "[" * 3000, "&a [*a]", "1e999", "0x", "2001-01-01", "include: .\n", "include: [input.yaml]\n",
    "${x}",
]  # fmt: skip


class Configs:
    """Breaks the file or the arguments of a fit or an evaluation, and lets the command parse and check them.

    Args:
        base: The base model of the run.
        folder: The working directory of the commands.
    """

    longest_seconds = 20.0

    def __init__(self, base: str, folder: Path) -> None:
        self.folder = folder / "a" / "b" / "c"  # names such as ../.. stay in the folder
        self.folder.mkdir(parents=True)
        self.run = compose("cera://smol_cera")
        self.run["model"]["base"] = base
        self.run["trainer"] |= {"precision": "32-true", "max_steps": 4, "val_check_interval": 2}
        self.evaluation = compose("cera://eval_logistic_map")

    def __call__(self, rng: random.Random) -> str:
        """Parse a broken configuration; return the error that it ends in, or an empty text."""
        is_run = rng.random() < 0.8
        config = copy.deepcopy(self.run if is_run else self.evaluation)
        options = []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            if not config:  # an earlier change left nothing
                break
            if rng.random() < 0.5:
                change_setting(rng, config)
            else:
                options.append(override(rng, config))
        text = yaml.safe_dump(config, allow_unicode=True)
        if rng.random() < 0.15:
            text = change_text(rng, text)
        return self.parse(is_run, text, options)

    def parse(self, is_run: bool, text: str, options: list[str]) -> str:
        """Let a command parse a configuration; return the error that it ends in, or an empty text.

        Args:
            is_run: Whether it is that of a fit, or else of an evaluation.
            text: Content of the file.
            options: Further arguments.
        """
        file = self.folder / "input.yaml"
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        arguments = [f"--config={file}", *options]
        with self._only_parsing(), captured() as output:
            try:
                status = train.main(arguments) if is_run else evaluate.main([*arguments, "--base=x"])
            except SystemExit as left:  # --help
                status = left.code
        return error_of(status, output.getvalue())

    @contextlib.contextmanager
    def _only_parsing(self) -> Iterator[None]:
        """Let the commands end when all objects are made, in the folder and with a home in it."""
        variables = {"HOME": str(self.folder), "HF_HUB_OFFLINE": "1"}
        with (
            mock.patch.dict(os.environ, variables),
            mock.patch.object(TrainingCLI, "_run_subcommand"),
            mock.patch.object(evaluate, "_evaluate", lambda options: options.evaluation.task.check()),
            contextlib.chdir(self.folder),
        ):
            os.environ.pop("CERA_RUN_DIR", None)
            yield


@contextlib.contextmanager
def captured() -> Iterator[io.StringIO]:
    """Collect what is printed on standard output and standard error."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        yield output


def error_of(status: Any, output: str) -> str:
    """Return the error in a command's output, which must go with its exit status."""
    assert "Traceback" not in output, output
    errors = [line for line in output.splitlines() if re.match(r"(usage: .*)?error:", line)]
    if status in (0, None):
        return ""
    assert status == 2, (status, output)
    assert len(errors) == 1, output
    assert output.rstrip().splitlines()[-1] == errors[0], output
    return errors[0]


def places(value: Any, where: tuple = ()) -> Iterator[tuple]:
    """Yield the keys that lead to each value within a configuration."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*where, key)
        yield from places(item, (*where, key))


def random_value(rng: random.Random, old: Any = None) -> Any:
    """Return a value in place of an old one, often of the same type: most of the others end at the parser."""
    if rng.random() < 0.6:
        if isinstance(old, int | float) and rng.random() < 0.5:
            return rng.choice([old, old + 1, 2 * old])  # which most settings take, so that what comes later is reached
        if isinstance(old, int | float):
            numbers = [0, 1, 2, 3, 7, -1, 0.5, 1e-9, 1e30, 10**9, 2**63, float("nan"), float("inf"), True, False, old]
            return rng.choice(numbers)
        if isinstance(old, str):
            return rng.choice([*CLASSES, *STRINGS, old.upper(), f"{old}x", f"~/{old}", fuzzed_text(rng), ""])
    kind = rng.randrange(6)
    if kind == 0:
        return fuzzed_value(rng)
    if kind == 1:
        return {"class_path": rng.choice([*CLASSES, *VALUES]), "init_args": rng.choice([{}, {"r": 4}, *VALUES])}
    if kind == 2:
        return rng.choice([*CLASSES, *STRINGS])
    return rng.choice(VALUES)


def change_setting(rng: random.Random, config: dict[str, Any]) -> None:
    """Replace, remove, rename or add a setting."""
    *parents, last = rng.choice(list(places(config)))
    parent: Any = config
    for key in parents:
        parent = parent[key]
    kind = rng.randrange(8)
    if kind == 0:
        del parent[last]
    elif kind == 1 and isinstance(parent, dict):
        name = rng.choice([f"{last}s", str(last)[:-1], f"{last}+", f"{last}.x", "", "include", 5, "class_path", "\n"])
        parent[name] = parent.pop(last)
    elif kind == 2 and isinstance(parent, dict):
        parent[rng.choice([f"{last}+", "unknown", "init_args", "include", "__class__"])] = random_value(rng)
    else:
        parent[last] = random_value(rng, parent[last])


def override(rng: random.Random, config: dict[str, Any]) -> str:
    """Return an argument of the command line."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(
            ["x", "--", "-", "-x", "--x", "--x=1", "--config", "--config=nothing.yaml", "--config=/",
             "--print_config=x", "--model", "--help=x", "--trainer.max_step=3", "--model.lr=1",
             "configs/smol_cera.yaml",
             "", "--=", "\ud800", "--config={", "--config=a: 1", "--ckpt_path=last", "--ckpt_path=/dev/null",
             "--name=../x", "--name="]
        )  # fmt: skip
    keys = rng.choice(list(places(config)))
    where, old = [str(key) for key in keys], functools.reduce(operator.getitem, keys, config)
    if rng.random() < 0.1:
        where.append(rng.choice(["x", "init_args", "class_path", "0"]))
    value = random_value(rng, old)
    text = value if isinstance(value, str) else json.dumps(value)
    sign = rng.choice(["=", "=", "=", "+="])
    return f"--{'.'.join(where)}{sign}{text}".replace("\0", "")  # which no command line can have


def change_text(rng: random.Random, text: str) -> str:
    """Return the text of a file with a piece cut, doubled or put in."""
    start = rng.randrange(len(text))
    end = min(len(text), start + rng.randrange(1, 40))
    kind = rng.randrange(5)
    if kind == 0:
        return text[:start]
    if kind == 1:
        return text[:start] + text[end:]
    if kind == 2:
        return text[:start] + text[start:end] * 2 + text[end:]
    if kind == 3:
        return text[:start] + "".join(map(chr, rng.choices(range(0x300), k=3))) + text[start:]
    return text[:start] + rng.choice(FRAGMENTS) + text[start:]
