"""The report of all benchmarks, docs/performance.md with its pictures, from the results that they have saved.

All numbers are those of the JSON files, goals and floors are told by the docstrings of ``run``, and what is to be said
about the numbers is a section of ``benchmarks/notes.md`` with the name of the benchmark as its heading.
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
from benchmarks.harness import Goal, Result, Row, ratios, table
from benchmarks.process import REPOSITORY, BenchmarkError
from cera.runs.files import replacing

NOTES = Path(__file__).parent / "notes.md"
DOCS = REPOSITORY / "docs"
Details = Mapping[str, Any]


@dataclass(frozen=True)
class Saved:
    """A result as ``harness.save`` wrote it.

    Attributes:
        result: What was found.
        environment: Where and with what.
    """

    result: Result
    environment: dict[str, Any]


def write(names: Sequence[str], results: Path, notes: Path = NOTES, docs: Path = DOCS) -> tuple[list[Path], list[str]]:
    """Write ``performance.md`` and its pictures.

    Args:
        names: Of the benchmarks, in the order of the report.
        results: Where ``NAME.json`` of each is.
        notes: A Markdown file with a section ``## NAME`` for what is to be said about a benchmark; need not be there.
        docs: Where the report goes; the pictures go to ``pictures`` in it.

    Returns:
        The files written, the report first, and the benchmarks that miss a goal without a note that says why.

    Raises:
        BenchmarkError: A full result is missing or is no result; a note is about no benchmark.
    """
    saved = read(names, results)
    said = sections(notes, names)
    pictures = docs / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    files = [docs / "performance.md"]

    def picture(name: str, figure: Figure) -> str:
        files.append(pictures / f"benchmarks_{name}.png")
        with replacing(files[-1]) as file:
            figure.savefig(file, format="png")
        return f"![{name.replace('_', ' ')}](pictures/{files[-1].name})"

    parts = [*_beginning([one.result for one in saved]), picture("goals", figures.goals([one.result for one in saved]))]
    for one in saved:
        shown = [picture(name, draw(one.result.details)) for name, draw in PICTURES.get(one.result.name, {}).items()]
        parts += [*_about(one.result), *shown]
        if one.result.name in said:
            parts.append(said[one.result.name])
    parts += _environments(saved)
    with replacing(files[0]) as file:
        file.write_text("\n\n".join(parts) + "\n")
    missed = {one.result.name for one in saved if any(row.reached is False for row in one.result.rows)}
    return files, [name for name in names if name in missed and name not in said]


# Reading


def read(names: Sequence[str], folder: Path) -> list[Saved]:
    """The full results of all the benchmarks. Raises ``BenchmarkError`` as ``write`` does."""
    if missing := [name for name in names if not (folder / f"{name}.json").is_file()]:
        quick = [name for name in missing if (folder / f"{name}.quick.json").is_file()]
        only = f" Quick results, which there are of {', '.join(quick)}, are not reported." if quick else ""
        raise BenchmarkError(
            f"{folder} has no full result of {', '.join(missing)}: run `python -m benchmarks NAME` for each.{only}"
        )
    return [_read(folder / f"{name}.json") for name in names]


def _read(path: Path) -> Saved:
    try:
        content = json.loads(path.read_text())
        rows = [Row(row["what"], row["ratios"], _goal(row["goal"])) for row in content["rows"]]
        saved = Saved(Result(content["name"], rows, content["dtype"], content["details"]), content["environment"])
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
    """What the file says under ``## NAME``, by name. Raises ``BenchmarkError`` for another heading than ``names``."""
    if not notes.is_file():
        return {}
    _, *parts = re.split(r"^## +(.+?) *$", notes.read_text(), flags=re.MULTILINE)
    found = {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}
    if unknown := [name for name in found if name not in names]:
        raise BenchmarkError(
            f"{notes}: no benchmark is named {', '.join(unknown)}; headings can be {', '.join(names)}."
        )
    return found


# The parts of the report, each a list of Markdown paragraphs


def _beginning(results: Sequence[Result]) -> list[str]:
    rows = []
    for result in results:
        goals = [row for row in result.rows if row.goal]
        reached = f"{sum(bool(row.reached) for row in goals)} of {len(goals)}" if goals else "none set"
        rows.append([f"[{result.name}](#{result.name})", reached, _farthest(goals)])
    return [
        "# Performance",
        "Written by `python -m benchmarks report` from `benchmarks/results`; the words on missed goals are those of "
        "`benchmarks/notes.md`.",
        "Contenders take turns (A B A B), on the same model, data, dtype and threads. A ratio is taken within a round; "
        "told are the median over the rounds and, in brackets, the smallest, the largest and the number of rounds.",
        "## Goals",
        _markdown(["benchmark", "goals reached", "farthest from its goal"], rows),
    ]


def _farthest(rows: Sequence[Row]) -> str:
    """Of the rows that miss their goal, the one that does by the largest factor."""
    missed = [
        (max(row.median / row.goal.bound, row.goal.bound / row.median), row)
        for row in rows
        if row.goal and not row.reached
    ]
    if not missed:
        return ""
    _, row = max(missed, key=lambda one: one[0])
    return f"{row.what}: {_digits(row.median)}, not {row.goal}"


def _about(result: Result) -> list[str]:
    """What is measured, goal and floor, the table, and how far from the floor it is."""
    module = importlib.import_module(f"benchmarks.{result.name}")
    what, goal = inspect.getdoc(module) or "", inspect.getdoc(module.run) or ""
    told = [what.split("\n\n")[0], *goal.split("\n\n")]
    parts = [f"## {result.name}", *(_paragraph(text) for text in told), table([result])]
    if result.name in FLOORS:
        parts += ["Medians:", FLOORS[result.name](result.details)]
    return parts


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.replace("``", "`").split()), 120, break_long_words=False, break_on_hyphens=False)


def _environments(saved: Sequence[Saved]) -> list[str]:
    """What all results were measured with, and a table of what differs."""
    told = {one.result.name: _flat(one.environment) for one in saved}
    keys = dict.fromkeys(key for of in told.values() for key in of)
    values = {key: [of.get(key, "") for of in told.values()] for key in keys}
    common = {key: of[0] for key, of in values.items() if len(set(of)) == 1}
    rows = [[name, *(of.get(key, "") for key in keys if key not in common)] for name, of in told.items()]
    return [
        "## Environment",
        "\n".join(f"- {key}: {value}" for key, value in common.items()),
        _markdown(["benchmark", *(key for key in keys if key not in common)], rows),
    ]


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {of}" for key, of in value.items())
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    return {key.replace("_", " "): text(value) for key, value in environment.items()}


def _markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers are rounded to three digits, and are to the right."""
    places = [
        "---:" if rows and all(isinstance(row[i], int | float) for row in rows) else "---" for i in range(len(header))
    ]
    lines = [header, places, *([_digits(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _digits(cell: Any) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


# How far from the floor, from a benchmark's details: Markdown


def _decoding(details: Details) -> str:
    sizes = {name: of for name, of in details.items() if isinstance(of, Mapping)}
    rows = [
        [size, name, 1e3 * median(seconds), median(ratios(seconds, of["base"]))]
        for size, of in sizes.items()
        for name, seconds in of.items()
    ]
    return _markdown(["size", "contender", "ms a token", "in units of the floor"], rows)


def _estimate(details: Details) -> str:
    rows = []
    for of in details.values():
        case = f"{of['method']} r={of['r']}, {of['model']}, {of['precision']}, {of['rows']} x {of['length']}"
        estimated, measured = sum(of["estimated"].values()) / 2**20, median(of["measured"]) / 2**20
        rows.append([case, "yes" if of["checkpointing"] else "", estimated, measured])
    return _markdown(["run", "checkpointing", "estimated, MiB", "measured, MiB"], rows)


def _layer(details: Details) -> str:
    rows = []
    for size, of in details.items():
        frozen, floor = of["seconds"]["frozen"], of["floor"]
        work = (floor["frozen_flops"] + floor["adapter_flops"]) / floor["frozen_flops"]
        for name in of["seconds"]:
            time = median(ratios(of["seconds"][name], frozen))
            rows.append([size, name, time, 1.0 if name == "frozen" else work, of["saved_bytes"][name] / floor["bytes"]])
    measured = _markdown(["size", "contender", "time / frozen", "operations / frozen", "saved bytes / input"], rows)
    profiles = {(size, name): spent for size, of in details.items() for name, spent in of["operations"].items()}
    return f"{measured}\n\n{_operations(profiles, ['size', 'contender'])}"


def _operations(profiles: Mapping[tuple[str, ...], Mapping[str, float]], header: Sequence[str]) -> str:
    """The operations that take at least 3% of anyone's time, and the rest.

    Args:
        profiles: Seconds by operation, of each contender.
        header: What the keys of ``profiles`` tell.
    """
    largest = {
        name: max(of.get(name, 0) / sum(of.values()) for of in profiles.values())
        for name in dict.fromkeys(name for of in profiles.values() for name in of)
    }
    shown = [name for name in sorted(largest, key=lambda name: -largest[name]) if largest[name] >= 0.03]
    rows = [
        [*key, *(1e3 * of.get(name, 0.0) for name in shown), 1e3 * sum(of[name] for name in of if name not in shown)]
        for key, of in profiles.items()
    ]
    table = _markdown([*header, *(f"`{_short(name)}`" for name in shown), "others"], rows)
    return f"Where the time goes, in ms (`torch.profiler`):\n\n{table}"


def _short(operation: str) -> str:
    """Without its namespace and what is the same for all attention on a CPU."""
    return operation.removeprefix("aten::").removeprefix("_").replace("_flash_attention_for_cpu", "")


def _logits(details: Details) -> str:
    full = 2 * 4 * details["rows"] * details["length"] * details["vocabulary"]
    rows = [[way, median(of) / 2**20, median(of) / full] for way, of in details["bytes"].items()]
    return _markdown(["way", "growth, MiB", "in units of all logits and their gradient in fp32"], rows)


def _mixed(details: Details) -> str:
    rows = [
        [what, name, median(seconds), median(ratios(seconds, of["base"]))]
        for what, of in details["seconds"].items()
        for name, seconds in of.items()
    ]
    return _markdown(["what", "contender", "seconds", "in units of the floor"], rows)


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
        [way, 1e3 * median(of), details["floor_flops"] / median(of) / 1e9] for way, of in details["seconds"].items()
    ]
    return _markdown(["way", "ms", "floor's operations / time, GFLOP/s"], rows)


def _startup(details: Details) -> str:
    rows = [
        [name, median(seconds), median(details["seconds_to_its_end"][name])]
        for name, seconds in details["seconds_to_first_step"].items()
    ]
    measured = _markdown(["contender", "s to the first step", "s to its end"], rows)
    imports = details["import_seconds"]
    packages = dict.fromkeys(package for of in imports.values() for package in of)
    shown = [package for package in packages if max(of.get(package, 0) for of in imports.values()) >= 0.05]
    shown.sort(key=lambda package: -max(of.get(package, 0) for of in imports.values()))
    rows = [[package, *(1e3 * of.get(package, 0.0) for of in imports.values())] for package in shown]
    rows.append(["all", *(1e3 * sum(of.values()) for of in imports.values())])
    return f"{measured}\n\nImports, in ms (`python -X importtime`):\n\n{_markdown(['package', *imports], rows)}"


def _tracking(details: Details) -> str:
    row = [1e3 * median(details["tracking"]), 1e3 * median(details["steps"]), details["interval"]]
    return _markdown(["tracking at a validation, ms", "training step, ms", "steps between validations"], [row])


def _training(details: Details) -> str:
    rates, padding, peaks = (details[key] for key in ("tokens_per_second", "padding_share", "peak_bytes"))
    rows = [[name, median(rates[name]), 100 * median(padding[name]), median(peaks[name]) / 2**20] for name in rates]
    measured = _markdown(["contender", "tokens/s", "padding, %", "peak memory, MiB"], rows)
    profiles = {(name,): of["operations"] for name, of in details["profiles"].items()}
    return f"{measured}\n\n{_operations(profiles, ['a step of'])}" if profiles else measured


FLOORS: dict[str, Callable[[Details], str]] = {
    "decoding": _decoding,
    "dora": _training,
    "estimate": _estimate,
    "layer": _layer,
    "logits": _logits,
    "mixed": _mixed,
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
