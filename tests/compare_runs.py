"""Compares all files of two runs that should be equal, such as an interrupted and an uninterrupted one."""

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

TIMES = {
    "throughput/tokens_per_second": "time",
    "throughput/mfu": "time",
    "throughput/peak_memory_gib": "memory of the process",
    "spectra/cost": "time",
}
"""Logged values that may differ, and what they depend on."""

RECORDS = {"date", "command", "load_average", "memory_gib", "nice", "resumed"}
"""Fields of environment.json that may differ: when and how each process was started."""

SECONDS = {"seconds", "training", "work"}
"""Fields of a callback's state in a checkpoint that may differ: measured times."""

UNREAD = ("val_loop.batch_progress",)
"""Counters of Lightning's loops that may differ: it counts a validation's batches only to resume within one."""


def differences(run: Path, reference: Path) -> list[str]:
    """Return a line for each difference between the files of two run directories."""
    differing = []
    names = {path: _files(path) for path in (run, reference)}
    if names[run] != names[reference]:
        differing.append(f"files: {sorted(names[run] ^ names[reference])}")
    for name in sorted(names[run] & names[reference]):
        read = READERS.get(Path(name).name) or READERS.get(Path(name).suffix) or Path.read_bytes
        ours, theirs = read(run / name), read(reference / name)
        if not _equal(ours, theirs):
            differing.append(f"{name}: {_first_difference(ours, theirs)}")
    if not _equal(_events(run), _events(reference)):
        differing.append(f"TensorBoard: {_first_difference(_events(run), _events(reference))}")
    return differing


def _files(run: Path) -> set[str]:
    """Return the files below ``run``, without the lock, which names a process, and TensorBoard's."""
    paths = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    return {path for path in paths if path != ".lock" and "events.out.tfevents" not in path}


def _metrics(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def _environment(path: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads(path.read_text()).items() if key not in RECORDS}


def _text(path: Path) -> str:
    """Return a file's text, in which the directory of the run has one name for all runs."""
    return path.read_text().replace(str(path.parent.parent), "RUNS")


def _journal(path: Path) -> dict[str, Any]:
    """Return a journal without the sizes of TensorBoard's files, of which each process has its own."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "events"}


def _checkpoint(path: Path) -> dict[str, Any]:
    checkpoint = torch.load(path, weights_only=True)
    for state in [*checkpoint["callbacks"].values(), checkpoint.get("throughput", {})]:
        for key in SECONDS & state.keys():
            del state[key]
    loops = checkpoint["loops"]["fit_loop"]
    for key in [key for key in loops if key.endswith(UNREAD)]:
        del loops[key]
    return checkpoint


def _tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str] | None]:
    """Return the tensors and metadata of a file, which safetensors writes in no order."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118  # not a dict


READERS = {
    ".safetensors": _tensors,
    "metrics.csv": _metrics,
    "environment.json": _environment,
    "config.yaml": _text,
    ".json": _journal,
    ".ckpt": _checkpoint,
}


def _events(run: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Return the values in TensorBoard's files by tag, as (step, value), without when they were written.

    Layouts and hyperparameters, which each process writes at its start, count once.
    """
    values = defaultdict(list)
    for path in sorted(run.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag not in TIMES:
                    _sort_hyperparameters(value)
                    values[value.tag].append((event.step, value.SerializeToString(deterministic=True)))
    once = {tag: sorted(set(entries)) for tag, entries in values.items() if tag.startswith(("_hparams_/", "custom_"))}
    return {tag: sorted(entries) for tag, entries in values.items()} | once


def _sort_hyperparameters(value: Any) -> None:
    """Sort the hyperparameters in a summary's value: they are a map within bytes, in another order in each process."""
    plugin = value.metadata.plugin_data
    if plugin.plugin_name == "hparams":
        plugin.content = HParamsPluginData.FromString(plugin.content).SerializeToString(deterministic=True)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def _first_difference(a: Any, b: Any, where: str = "") -> str:
    """Return the place and the values of the first difference within two values that differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{where} keys {sorted(map(str, a.keys() ^ b.keys()))[:5]}"
        key = next(key for key in a if not _equal(a[key], b[key]))
        return _first_difference(a[key], b[key], f"{where}/{key}")
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        i = next(i for i in range(len(a)) if not _equal(a[i], b[i]))
        return _first_difference(a[i], b[i], f"{where}/{i}")
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return f"{where} has {len(a)} entries, not {len(b)}; {str([x for x in a if x not in b] or a[len(b) :])[:300]}"
    return f"{where} is {str(a)[:200]}, not {str(b)[:200]}"
