"""Generates docs/performance.md and its pictures from the saved results of all benchmarks.

Numbers come from the JSON files, goals and floors from the docstrings of ``run``, and remarks from the section of
``benchmarks/notes.md`` whose heading is the benchmark's name.
"""

import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

from matplotlib.figure import Figure

from benchmarks import figures
from benchmarks.harness import Goal, RatioRow, Result, ratio_table, ratios
from benchmarks.process import REPOSITORY, BenchmarkError
from cera.cli.tables import table
from cera.runs.files import replacing

NOTES = Path(__file__).parent / "notes.md"
DOCS = REPOSITORY / "docs"
Details = Mapping[str, Any]


@dataclass(frozen=True)
class SavedResult:
    """A result as written by ``harness.save``.

    Attributes:
        result: The result.
        environment: Machine and versions of the measurement.
    """

    result: Result
    environment: dict[str, Any]


def write(
    names: Sequence[str], results: Path, notes: Path = NOTES, docs: Path = DOCS, unreported: Sequence[str] = ()
) -> tuple[list[Path], list[str]]:
    """Write ``performance.md`` and its pictures.

    Args:
        names: Names of the benchmarks, in the order of the report.
        results: Directory with the file ``NAME.json`` of each.
        notes: Markdown file with sections ``## NAME`` of remarks on a benchmark; it is optional.
        docs: Directory of the report; pictures are written to its ``pictures``.
        unreported: Names of benchmarks that ``notes`` may have a section on, and that are left out of the report.

    Returns:
        The files written, the report first, and the benchmarks that miss a goal and have no section in ``notes``.

    Raises:
        BenchmarkError: A full result is missing or invalid, or a section has the name of no benchmark.
    """
    saved = read(names, results)
    remarks = sections(notes, [*names, *unreported])
    pictures = docs / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    files = [docs / "performance.md"]

    def picture(name: str, figure: Figure) -> str:
        files.append(pictures / f"benchmarks_{name}.png")
        with replacing(files[-1]) as file:
            figure.savefig(file, format="png")
        return f"![{name.replace('_', ' ')}](pictures/{files[-1].name})"

    all_results = [entry.result for entry in saved]
    parts = [*_overview(all_results), picture("goals", figures.goals(all_results))]
    for result in all_results:
        parts += _section(result)
        parts += [picture(name, draw(result.details)) for name, draw in PICTURES.get(result.name, {}).items()]
        if result.name in remarks:
            parts.append(remarks[result.name])
    parts += _environments(saved)
    with replacing(files[0]) as file:
        file.write_text("\n\n".join(parts) + "\n")
    missed = {result.name for result in all_results if any(row.reached is False for row in result.rows)}
    return files, [name for name in names if name in missed and name not in remarks]


# Reading


def read(names: Sequence[str], folder: Path) -> list[SavedResult]:
    """Read the full results of all benchmarks; raise ``BenchmarkError`` as ``write`` does."""
    if missing := [name for name in names if not (folder / f"{name}.json").is_file()]:
        quick = [name for name in missing if (folder / f"{name}.quick.json").is_file()]
        only = f" Quick results, such as those of {', '.join(quick)}, are not reported." if quick else ""
        raise BenchmarkError(
            f"{folder} has no full result of {', '.join(missing)}: run `python -m benchmarks NAME` for each.{only}"
        )
    return [_read(folder / f"{name}.json") for name in names]


def _read(path: Path) -> SavedResult:
    try:
        content = json.loads(path.read_text())
        rows = [RatioRow(row["what"], row["ratios"], _goal(row["goal"])) for row in content["rows"]]
        saved = SavedResult(Result(content["name"], rows, content["dtype"], content["details"]), content["environment"])
        quick = content["quick"]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path} is not a result that `python -m benchmarks` has saved ({error!r}).") from error
    if quick or path.stem != saved.result.name:
        kind = "quick" if quick else "full"
        raise BenchmarkError(
            f"{path} should hold the full result of {path.stem}, not the {kind} one of {saved.result.name}."
        )
    return saved


def _goal(text: str) -> Goal | None:
    if not text:
        return None
    sense, bound = text.split()
    return Goal(cast(Any, sense), float(bound))


def sections(notes: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the text under each heading ``## NAME``; raise ``BenchmarkError`` for a heading not in ``names``."""
    if not notes.is_file():
        return {}
    _, *parts = re.split(r"^## +(.+?) *$", notes.read_text(), flags=re.MULTILINE)
    texts = {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}
    if unknown := [name for name in texts if name not in names]:
        raise BenchmarkError(
            f"{notes}: no benchmark is named {', '.join(unknown)}; headings can be {', '.join(names)}."
        )
    return texts


# The parts of the report, each a list of Markdown paragraphs


def _overview(results: Sequence[Result]) -> list[str]:
    rows = []
    for result in results:
        goals = [row for row in result.rows if row.goal]
        reached = f"{sum(bool(row.reached) for row in goals)} of {len(goals)}" if goals else "none set"
        rows.append([f"[{result.name}](#{result.name})", reached, _farthest(goals)])
    return [
        "# Performance",
        "Generated by `python -m benchmarks report` from `benchmarks/results`, with the remarks of "
        "`benchmarks/notes.md`.",
        "Contenders take turns (A B A B) on the same model, data, dtype and number of threads, and ratios are taken "
        "within a round. The tables report the median over rounds, with minimum, maximum and number of rounds in "
        "brackets.",
        "## Goals",
        _markdown(["benchmark", "goals reached", "farthest from its goal"], rows),
    ]


def _farthest(rows: Sequence[RatioRow]) -> str:
    """Describe the row that misses its goal by the largest factor."""
    missed = [
        (max(row.median / row.goal.bound, row.goal.bound / row.median), row)
        for row in rows
        if row.goal and not row.reached
    ]
    if not missed:
        return ""
    _, row = max(missed, key=lambda entry: entry[0])
    return f"{row.what}: {_digits(row.median)}, not {row.goal}"


def _section(result: Result) -> list[str]:
    """Return a benchmark's description, goal and floor, its table, and its distance from the floor."""
    module = importlib.import_module(f"benchmarks.{result.name}")
    description, goal = inspect.getdoc(module) or "", inspect.getdoc(module.run) or ""
    texts = [description.split("\n\n")[0], *goal.split("\n\n")]
    parts = [f"## {result.name}", *(_paragraph(text) for text in texts), ratio_table([result])]
    if result.name in FLOORS:
        parts += ["Medians:", FLOORS[result.name](result.details)]
    return parts


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.replace("``", "`").split()), 120, break_long_words=False, break_on_hyphens=False)


def _environments(saved: Sequence[SavedResult]) -> list[str]:
    """List the environment that all results share, and tabulate the differences."""
    records = {entry.result.name: _flat(entry.environment) for entry in saved}
    keys = dict.fromkeys(key for record in records.values() for key in record)
    values = {key: [record.get(key, "") for record in records.values()] for key in keys}
    common = {key: column[0] for key, column in values.items() if len(set(column)) == 1}
    rows = [[name, *(record.get(key, "") for key in keys if key not in common)] for name, record in records.items()]
    return [
        "## Environment",
        "\n".join(f"- {key}: {value}" for key, value in common.items()),
        _markdown(["benchmark", *(key for key in keys if key not in common)], rows),
    ]


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {entry}" for key, entry in value.items())
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    return {key.replace("_", " "): text(value) for key, value in environment.items()}


def _markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a table with numbers rounded to three digits and aligned to the right."""
    numeric = [i for i in range(len(header)) if rows and all(isinstance(row[i], int | float) for row in rows)]
    return table([[_digits(cell) for cell in row] for row in rows], header, style="markdown", verbatim=numeric)


def _digits(cell: Any) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


# Distance from the floor, from a benchmark's details: Markdown


def _decoding(details: Details) -> str:
    sizes = {size: seconds for size, seconds in details.items() if isinstance(seconds, Mapping)}
    rows = [
        [size, name, 1e3 * median(seconds), median(ratios(seconds, contenders["base"]))]
        for size, contenders in sizes.items()
        for name, seconds in contenders.items()
    ]
    return _markdown(["size", "contender", "ms per token", "in units of the floor"], rows)


def _estimate(details: Details) -> str:
    rows = []
    for case in details.values():
        setting = f"{case['method']} r={case['r']}, {case['model']}, {case['precision']}"
        run = f"{setting}, {case['rows']} x {case['length']}"
        estimated, measured = sum(case["estimated"].values()) / 2**20, median(case["measured"]) / 2**20
        rows.append([run, "yes" if case["checkpointing"] else "", estimated, measured])
    return _markdown(["run", "checkpointing", "estimated, MiB", "measured, MiB"], rows)


def _layer(details: Details) -> str:
    rows = []
    for size, measured in details.items():
        seconds, saved, floor = measured["seconds"], measured["saved_bytes"], measured["floor"]
        work = (floor["frozen_flops"] + floor["adapter_flops"]) / floor["frozen_flops"]
        for name in seconds:
            time = median(ratios(seconds[name], seconds["frozen"]))
            rows.append([size, name, time, 1.0 if name == "frozen" else work, saved[name] / floor["bytes"]])
    costs = _markdown(["size", "contender", "time / frozen", "operations / frozen", "saved bytes / input"], rows)
    profiles = {
        (size, name): seconds for size, measured in details.items() for name, seconds in measured["operations"].items()
    }
    return f"{costs}\n\n{_operations(profiles, ['size', 'contender'])}"


def _operations(profiles: Mapping[tuple[str, ...], Mapping[str, float]], header: Sequence[str]) -> str:
    """Tabulate the operations that take at least 3% of the time of some contender, and the sum of the others.

    Args:
        profiles: Seconds by operation for each contender.
        header: Headers for the parts of the keys of ``profiles``.
    """
    largest = {
        name: max(profile.get(name, 0) / sum(profile.values()) for profile in profiles.values())
        for name in dict.fromkeys(name for profile in profiles.values() for name in profile)
    }
    shown = [name for name in sorted(largest, key=lambda name: -largest[name]) if largest[name] >= 0.03]
    rows = [
        [
            *key,
            *(1e3 * profile.get(name, 0.0) for name in shown),
            1e3 * sum(seconds for name, seconds in profile.items() if name not in shown),
        ]
        for key, profile in profiles.items()
    ]
    operations = _markdown([*header, *(f"`{_short(name)}`" for name in shown), "others"], rows)
    return f"Time by operation, in ms (`torch.profiler`):\n\n{operations}"


def _short(operation: str) -> str:
    """Return the name without its namespace and the suffix of attention on a CPU."""
    return operation.removeprefix("aten::").removeprefix("_").replace("_flash_attention_for_cpu", "")


def _logits(details: Details) -> str:
    full = 2 * 4 * details["rows"] * details["length"] * details["vocabulary"]
    rows = [[method, median(growth) / 2**20, median(growth) / full] for method, growth in details["bytes"].items()]
    return _markdown(["method", "growth, MiB", "in units of all logits and their gradient in fp32"], rows)


def _mixed(details: Details) -> str:
    rows = [
        [workload, name, median(seconds), median(ratios(seconds, contenders["base"]))]
        for workload, contenders in details["seconds"].items()
        for name, seconds in contenders.items()
    ]
    return _markdown(["workload", "contender", "seconds", "in units of the floor"], rows)


def _scaling(details: Details) -> str:
    rows = [
        [
            *(point[field] for field in ("rank", "length", "layers")),
            name,
            point["length"] / median(seconds),
            median(point["bytes"][name]) / 2**20,
            median(seconds) / point["floor_seconds"],
        ]
        for point in details["points"]
        for name, seconds in point["seconds"].items()
    ]
    header = ["rank", "length", "layers", "contender", "tokens/s", "growth, MiB", "time in units of the floor"]
    rate = median(details["product_flops_per_second"]) / 1e12
    return f"The product of the floor: {rate:.3g} TFLOP/s.\n\n{_markdown(header, rows)}"


def _spectra(details: Details) -> str:
    rows = [
        [method, 1e3 * median(seconds), details["floor_flops"] / median(seconds) / 1e9]
        for method, seconds in details["seconds"].items()
    ]
    return _markdown(["method", "ms", "floor's operations / time, GFLOP/s"], rows)


def _startup(details: Details) -> str:
    rows = [
        [name, median(seconds), median(details["seconds_to_its_end"][name])]
        for name, seconds in details["seconds_to_first_step"].items()
    ]
    measured = _markdown(["contender", "s to the first step", "s to its end"], rows)
    imports = details["import_seconds"]
    packages = dict.fromkeys(package for seconds in imports.values() for package in seconds)
    longest = {package: max(seconds.get(package, 0) for seconds in imports.values()) for package in packages}
    shown = sorted((package for package in packages if longest[package] >= 0.05), key=lambda name: -longest[name])
    rows = [[package, *(1e3 * seconds.get(package, 0.0) for seconds in imports.values())] for package in shown]
    rows.append(["all", *(1e3 * sum(seconds.values()) for seconds in imports.values())])
    return f"{measured}\n\nImports, in ms (`python -X importtime`):\n\n{_markdown(['package', *imports], rows)}"


def _tracking(details: Details) -> str:
    row = [1e3 * median(details["tracking"]), 1e3 * median(details["steps"]), details["interval"]]
    return _markdown(["tracking at a validation, ms", "training step, ms", "steps between validations"], [row])


def _training(details: Details) -> str:
    rates, padding, peaks = (details[key] for key in ("tokens_per_second", "padding_share", "peak_bytes"))
    rows = [[name, median(rates[name]), 100 * median(padding[name]), median(peaks[name]) / 2**20] for name in rates]
    measured = _markdown(["contender", "tokens/s", "padding, %", "peak memory, MiB"], rows)
    profiles = {(name,): profile["operations"] for name, profile in details["profiles"].items()}
    return f"{measured}\n\n{_operations(profiles, ['a step of'])}" if profiles else measured


FLOORS: dict[str, Callable[[Details], str]] = {
    "decoding": _decoding,
    "dora": _training,
    "estimate": _estimate,
    "layer": _layer,
    "logits": _logits,
    "mixed": _mixed,
    "mixed_many": _mixed,
    "scaling": _scaling,
    "spectra": _spectra,
    "startup": _startup,
    "tracking": _tracking,
    "training": _training,
}
PICTURES: dict[str, dict[str, Callable[[Details], Figure]]] = {
    "layer": {"layer_time": figures.layer_time, "layer_memory": figures.layer_memory},
    "scaling": {"scaling_speed": figures.scaling_speed, "scaling_memory": figures.scaling_memory},
}
