"""Writes docs/serving.md: its text is docs/serving.md.j2, and its numbers are those of results/serving.

    python scripts/serving_page.py

``serving/measure.py`` writes measured.json there, ``scripts/compare_backends.py`` gsm8k.json, and ``serving/demo.py
--result`` demo.json.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, StrictUndefined

from cera.cli.tables import table
from cera.runs.files import replacing

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "results" / "serving"
INPUTS = ("measured.json", "gsm8k.json", "demo.json")
PAGE = REPOSITORY / "docs" / "serving.md"
TEMPLATE = REPOSITORY / "docs" / "serving.md.j2"
GOAL = 1.02
"""Largest time of CeRA in units of LoRA's."""
SHOWN = 0.04
"""Least share of the time for which an operation has a column of its own."""
MISSING = "Not measured yet."
GIB = 2**30


def main() -> None:
    """Write the page."""
    with replacing(PAGE) as file:
        file.write_text(page(*(json.loads((RESULTS / name).read_text()) for name in INPUTS)))
    print(PAGE)


def page(measured: Mapping[str, Any], gsm8k: Mapping[str, Any], demo: Mapping[str, Any]) -> str:
    """Return the page, in Markdown.

    Args:
        measured: What ``serving/measure.py`` wrote.
        gsm8k: What ``scripts/compare_backends.py`` wrote.
        demo: What ``serving/demo.py`` wrote.
    """
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(TEMPLATE.read_text())
    return template.render(
        engine=engine_table(measured),
        layer=layer_table(measured["layer"]),
        operations=operations_table(measured["layer"]),
        throughput=throughput_table(measured["throughput"]) if "throughput" in measured else MISSING,
        server=server_table(measured["server"]) if "server" in measured else MISSING,
        machine=measured["layer"]["environment"],
        rounds=measured["layer"]["rounds"],
        load=load(measured),
        demo=demo,
        gsm8k=gsm8k,
        backends=backends_table(gsm8k),
        goal=GOAL,
    )


def load(measured: Mapping[str, Any]) -> str:
    """Return how much ran on the machine at the end of each part, the part included."""
    loads = [part["load_average"][0] for part in measured.values()]
    return f"a load of {min(loads)} to {max(loads)} on {measured['layer']['environment']['cores']} cores"


def ratio(found: Mapping[str, float], goal: float | None = None) -> str:
    """Return a ratio with its range over the rounds, and whether it misses the goal."""
    missed = f", not {goal}" if goal is not None and found["median"] > goal else ""
    return f"{found['median']:.3g} ({found['min']:.3g} to {found['max']:.3g}{missed})"


def engine_table(measured: Mapping[str, Any]) -> str:
    """Tabulate the ratios of whole steps."""
    rows = []
    for r in (64, 128):
        part = measured.get(f"engine-{r}", {"ratios": {}})
        for what, found in part["ratios"].items():
            base = 1e3 * median(part["seconds"][what]["base"])
            rows.append([what, r, f"{base:,.0f}", ratio(found["CeRA / LoRA"], GOAL), *map(ratio, others(found))])
    headers = ["", "r", "base, ms", "CeRA / LoRA", "CeRA / base", "LoRA / base"]
    return table(rows, headers, style="markdown", verbatim=(1, 2))


def others(found: Mapping[str, Any]) -> list[Any]:
    """Return the ratios to the base."""
    return [found["CeRA / base"], found["LoRA / base"]]


def layer_table(part: Mapping[str, Any]) -> str:
    """Tabulate the ratios of one layer's update."""
    rows = []
    for what, found in part["ratios"].items():
        milliseconds = 1e3 * median(part["seconds"][what]["CeRA"])
        ours, stock = ratio(found["CeRA / LoRA"], GOAL), found["LoRA / vLLM's LoRA"]["median"]
        rows.append([what, f"{milliseconds:.3g}", ours, f"{stock:.2g}"])
    headers = ["", "CeRA, ms", "CeRA / LoRA", "LoRA / vLLM's own LoRA"]
    return table(rows, headers, style="markdown", verbatim=(1, 3))


def operations_table(part: Mapping[str, Any]) -> str:
    """Tabulate where the time goes in the cases that miss the goal."""
    missed = [what for what, found in part["ratios"].items() if found["CeRA / LoRA"]["median"] > GOAL]
    if not missed:
        return ""
    profiles = [part["operations"][what][name] for what in missed for name in ("CeRA", "LoRA")]
    names = dict.fromkeys(
        name for profile in profiles for name, seconds in profile.items() if seconds > SHOWN * sum(profile.values())
    )
    rows = []
    for what in missed:
        for name in ("CeRA", "LoRA"):
            profile = part["operations"][what][name]
            shown = [1e6 * profile.get(operation, 0.0) for operation in names]
            rest = 1e6 * sum(profile.values()) - sum(shown)
            rows.append([what, name, *(f"{value:,.0f}" for value in (*shown, rest))])
    headers = ["", "", *(f"`{name.removeprefix('aten::')}`" for name in names), "others"]
    columns = table(rows, headers, style="markdown", verbatim=range(2, len(headers)))
    return f"Where it is missed, the profile of one update, in microseconds:\n\n{columns}\n"


def throughput_table(part: Mapping[str, Any]) -> str:
    """Tabulate the tokens per second by the number of adapters."""
    rates = part["tokens_per_second"]
    counts = [int(name.partition(", ")[2]) for name in rates if name.startswith("CeRA")]
    rows: list[list[Any]] = [["none", f"{rates['base']:,.0f}", f"{rates['base']:,.0f}", ""]]
    for count in counts:
        ours, lora = (part["seconds"][f"{name}, {count}"] for name in ("CeRA", "LoRA"))
        by_round = median(a / b for a, b in zip(ours, lora, strict=True))
        rows.append([count, *(f"{rates[f'{name}, {count}']:,.0f}" for name in ("CeRA", "LoRA")), f"{by_round:.3g}"])
    headers = ["adapters", "CeRA, tokens/s", "LoRA, tokens/s", "time of CeRA / LoRA"]
    return table(rows, headers, style="markdown", verbatim=(0, 1, 2, 3))


def server_table(part: Mapping[str, Any]) -> str:
    """Tabulate the start and the memory of a server."""
    rows = []
    for what in ("0 adapters", "16 adapters"):
        sizes = [sum(part[what]["memory"][when].values()) / GIB for when in ("idle", "after an answer of each")]
        rows.append([what, f"{part[what]['start']:.0f}", *(f"{size:.2f}" for size in sizes)])
    headers = ["", "s until it answers", "GiB then", "GiB after an answer of each"]
    return table(rows, headers, style="markdown", verbatim=(1, 2, 3))


def backends_table(gsm8k: Mapping[str, Any]) -> str:
    """Tabulate what the two backends took."""
    rows = [
        [name, f"{found['seconds']:,.0f}", f"{found['tokens'] / found['seconds']:,.0f}", f"{found['pass@1']:.1%}"]
        for name, found in gsm8k["backends"].items()
    ]
    return table(rows, ["backend", "seconds", "tokens/s", "pass@1"], style="markdown", verbatim=(1, 2, 3))


if __name__ == "__main__":
    main()
