"""Explains a parser's error message: on one line, with what a near miss may have meant.

Example:
    >>> explained("unrecognized arguments: --model.lr=1e-3", ["model.learning_rate", "model.warmup"])
    'unrecognized arguments: --model.lr=1e-3. Did you mean --model.learning_rate?'
"""

import importlib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path

from cera.adapters import BranchConfig
from cera.adapters.register import COUNTERPARTS
from cera.cli.shipped import FOLDER, similar_files
from cera.cli.similar import closest, did_you_mean

R = "model.adapter.init_args.r"
ELSEWHERE = {
    "lr": "model.learning_rate",
    "wd": "model.weight_decay",
    "warmup_ratio": "model.warmup",
    "model_name_or_path": "model.base",
    "model_name": "model.base",
    "base_model": "model.base",
    "rank": R,
    "r": R,
    "lora_r": R,
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "num_steps": "trainer.max_steps",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "max_grad_norm": "trainer.gradient_clip_val",
    "gpus": "trainer.devices",
    "bf16": "trainer.precision",
    "fp16": "trainer.precision",
    "dtype": "trainer.precision",
    "per_device_train_batch_size": "data.batch_size",
    "max_seq_length": "data.max_length",
    "seed": "seed_everything",
    "output_dir": "runs",
    "resume": "ckpt_path",
    "resume_from_checkpoint": "ckpt_path",
    "checkpoint": "ckpt_path",
    "save_steps": "checkpoint_every",
}
"""Names that other programs have for a setting, and its key here."""

CLASSES = {
    "adapter": "peft.PeftConfig",
    "dataset": "cera.data.ChatDataset",
    "validation": "cera.data.ChatDataset",
    "task": "cera.evaluation.tasks.Task",
    "callbacks": "lightning.pytorch.callbacks.Callback",
    "logger": "lightning.pytorch.loggers.Logger",
    "strategy": "lightning.pytorch.strategies.Strategy",
}
"""Last part of a key -> the class whose subclasses are its values."""
HOMES = ("cera", "cera.data", "cera.callbacks", "cera.training", "cera.evaluation.tasks", "cera.runs.trackio_logger")
"""Modules whose classes a configuration names."""


def explained(message: str, known: Iterable[str]) -> str:
    """Return an error message on one line, with the keys, classes or files that are similar to an unknown one.

    Args:
        message: Error message of jsonargparse.
        known: Keys of the command line, such as ``model.learning_rate``.
    """
    message, known = " ".join(message.split()), sorted(known)
    for explain in (_argument_of_class, _class_path, _file, _missing, _value):
        if (line := explain(message)) is not None:
            return line
    if match := re.search(r"unrecognized arguments: (?P<first>\S+)", message):
        first = match["first"]
        hint = _option_hint(first, known) if first.startswith("-") else _positional_hint(first)
        return f"{message}. {hint}".rstrip()
    if match := re.search(r"does not accept option '([\w.+-]+)'", message):
        return f"{message}. {_option_hint(match[1], known)}".rstrip()
    return message


def _option_hint(argument: str, known: list[str]) -> str:
    """Return what an unknown option may have meant, or the keys beside it."""
    dashes = "--" if argument.startswith("--") else ""
    key = argument.lstrip("-").partition("=")[0].replace("-", "_")
    if near := similar_keys(key, known):
        return did_you_mean([dashes + name for name in near])
    siblings = [name for name in known if "." in key and name.rpartition(".")[0] == key.rpartition(".")[0]]
    return f"There are {', '.join(siblings)}." if siblings else "`--help` and `--print_config` list all."


def similar_keys(key: str, known: list[str]) -> list[str]:
    """Return the known keys that are most similar to ``key``: by another program's name, by last part, by spelling."""
    last = key.rpartition(".")[2]
    by_last = {name.rpartition(".")[2]: name for name in known}
    if last in ELSEWHERE:
        return [ELSEWHERE[last]]
    if last in by_last:
        return [name for name in known if name.rpartition(".")[2] == last]
    group = ".".join(key.split(".")[:2])  # in model.adaptor.init_args.r, adaptor is misspelled
    near = closest(key, known, 0.8) or closest(group, known, 0.75)
    return near or [by_last[name] for name in closest(last, by_last, 0.75)]


def _positional_hint(argument: str) -> str:
    """Return what an argument without an option may have meant: a configuration, or a subcommand."""
    path = Path(argument)
    if path.suffix in (".yaml", ".yml"):
        shipped = path.is_relative_to(FOLDER)
        name = f"cera://{path.relative_to(FOLDER).with_suffix('')}" if shipped else argument
        return did_you_mean([f"--config {name}"])
    return did_you_mean(closest(argument, ("fit", "validate", "test", "predict")))


def _argument_of_class(message: str) -> str | None:
    match = re.search(r"class_path '([\w.]+)': Option '([\w.]+)' is not accepted", message)
    if match is None:
        return None
    config = import_class(match[1])
    fields = list(inspect.signature(config).parameters)
    if issubclass(config, BranchConfig) and match[2] in COUNTERPARTS:
        return f"{message}. Use {COUNTERPARTS[match[2]]}."
    near = [name.removeprefix("model.adapter.init_args.") for name in similar_keys(match[2], fields)]
    near = [name for name in near if name in fields]
    parts = [f"{message}.", did_you_mean(near), f"It takes {', '.join(fields)}."]
    return " ".join(filter(None, parts))


def _class_path(message: str) -> str | None:
    """Explain a class path that names no class."""
    key = re.search(r'[Pp]arser key "((?:[\w.]*\.)?(\w+))\+?"', message)
    name = re.search(
        r"Problem with given class_path '([\w.]+)': (?:module|No module)|Expected a dot import path string: ([\w.]+)",
        message,
    )
    if key is None or name is None or key[2] not in CLASSES:
        return None
    path = name[1] or name[2]
    by_name = {known.rpartition(".")[2].lower(): known for known in subclass_paths(import_class(CLASSES[key[2]]))}
    wanted = path.rpartition(".")[2].lower()
    near = [by_name[match] for match in closest(wanted, by_name) or [name for name in by_name if wanted in name]]
    return f"{key[1]}: there is no class {path}. {did_you_mean(near, 'A class path is MODULE.CLASS.')}"


def _file(message: str) -> str | None:
    """Explain a ``--config`` that does not exist."""
    match = re.search(r"Parser key \"config\": File does not exist: '(.+?)'", message)
    return None if match is None else f"--config: there is no file {match[1]}. {similar_files(Path(match[1]))}".rstrip()


def _missing(message: str) -> str | None:
    """Explain a setting that has no default and is not given."""
    match = re.search(r'Parser key "([\w.]+)": Expected .* Got value: None$', message)
    match = match or re.search(r'Key "([\w.]+)" is required', message)
    match = match or re.match(
        r"the following arguments are required: (?:fit\.|validate\.|test\.|predict\.)?([\w.]+)", message
    )
    if match is None:
        return None
    return f"{match[1]} is not set: give --config FILE or --config cera://NAME that has it, or --{match[1]}."


def _value(message: str) -> str | None:
    """Explain a value of another type, or that is none of several types."""
    match = re.search(r'Parser key "([\w.]+)\+?": (Expected|Does not validate) .*(?:Got|Given) value: (.*)', message)
    if match is None:
        return None
    if problem := re.search(r"Problem with given class_path '([\w.]+)': (.*?)(?= - Expected| Given value|$)", message):
        return f"{match[1]}: {problem[1]}: {problem[2]}."
    kinds = re.findall(r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[([^\]]+)\])", message)
    expected = [kind.replace("NoneType", "null") or literals.replace("'", "") for kind, literals in kinds]
    return f"{match[1]} must be {' or '.join(expected)}, got {match[3]}." if expected else None


def subclass_paths(base: type) -> list[str]:
    """Return the shortest class path of each subclass of ``base`` in the modules that are imported."""
    for module in HOMES:
        importlib.import_module(module)
    classes, paths = [base], set()
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        parts = cls.__module__.split(".")
        modules = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
        public = [module for module in modules if getattr(importlib.import_module(module), cls.__name__, None) is cls]
        if public and not cls.__name__.startswith("_"):
            paths.add(f"{public[0]}.{cls.__name__}")
    return sorted(paths)


def import_class(path: str) -> type:
    """Import a class by its dotted path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
