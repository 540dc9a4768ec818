"""Trains adapters on the same data, seed and budget, one after the other, and compares the finished runs.

    train_adapters("configs/parts/smol.yaml", ["configs/adapters/cera.yaml"], Path("runs/compare"))
    comparison_row(FinishedRun.read("runs/compare/cera"))

Each run is a process of its own, so its peak memory is its own.
"""

import csv
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from cera.foreign_files import read_json_object
from cera.runs.finished import FinishedRun, RunError
from cera.runs.settings import run_labels
from cera.runs.signals import SIGNALS, Stopped, stop_signals
from cera.spectral.aggregate import ALL_LAYERS, summarize
from cera.spectral.convention import matrix_name
from cera.spectral.files import CENTRED, Spectra
from cera.spectral.measures import MEASURES
from cera.spectral.sample import Sample

TRAIN = (sys.executable, "-m", "cera", "train")
"""Command that starts a training run in a process of its own."""


@dataclass(frozen=True)
class ComparisonRow:
    """The figures of one run; ``None`` where a figure was not measured.

    Attributes:
        name: Name of the run.
        adapter: The adapter's name in the paper, with its rank, and the settings in which the compared runs differ.
        parameters: Number of trainable parameters.
        perplexity: Perplexity on the held-out rows after the last step.
        measures: Registered measures of the update's spectrum (``cera.spectral.measures``), not centred, averaged over
            the layers.
        centred: The same of the centred update.
        sample: The tokens that the update was measured at; ``None`` without spectra.
        tokens_per_second: Median over training.
        peak_memory_gib: Peak memory of the whole process.
    """

    name: str
    adapter: str
    parameters: int | None
    perplexity: float | None
    measures: dict[str, float]
    centred: dict[str, float]
    sample: Sample | None
    tokens_per_second: float | None
    peak_memory_gib: float | None


def comparison_rows(runs: Sequence[FinishedRun]) -> list[ComparisonRow]:
    """Read the figures of runs that are compared; see ``comparison_row``."""
    return [replace(comparison_row(run), adapter=label) for run, label in zip(runs, run_labels(runs), strict=True)]


def comparison_row(run: FinishedRun) -> ComparisonRow:
    """Read the figures of a run from its directory.

    Raises:
        FileError: A file of the run is broken; the message names it.
    """
    environment = run.path / "environment.json"
    recorded = read_json_object(environment) if environment.exists() else {}
    parameters = recorded.get("trainable_parameters")
    if not isinstance(parameters, int | None):
        raise RunError(f"{environment}: trainable_parameters must be an integer, got {parameters!r}.")
    perplexity = run.curve("val/perplexity")
    spectra = run.spectra()
    measures, centred = (_means(spectra[-1], centre) if spectra else {} for centre in (False, True))
    speed = list(run.curve("throughput/tokens_per_second").values())
    memory = list(run.curve("throughput/peak_memory_gib").values())
    return ComparisonRow(
        name=run.name,
        adapter=run.label,
        parameters=parameters,
        perplexity=perplexity[max(perplexity)] if perplexity else None,
        measures=measures,
        centred=centred,
        sample=spectra[-1].sample if spectra else None,
        tokens_per_second=statistics.median(speed) if speed else None,
        peak_memory_gib=max(memory) if memory else None,
    )


def _means(spectra: Spectra, centre: bool) -> dict[str, float]:
    layers = spectra.values.get(matrix_name("update", centre), {})
    means = summarize(layers, spectra.ranks).means
    return {measure: groups[ALL_LAYERS] for measure, groups in means.items() if ALL_LAYERS in groups}


def write_csv(rows: Sequence[ComparisonRow], path: Path) -> None:
    """Write one line per run, with a column for each measure and empty cells for figures that were not measured.

    The measures of the centred update are under ``MEASURE_centred``.
    """
    names = [field.name for field in fields(ComparisonRow)]
    at = names.index("measures")
    measures = [measure.name for measure in MEASURES.values() if not measure.needs_shape]  # those are of weights
    centred = [name + CENTRED for name in measures]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*names[:at], *measures, *centred, *names[at + 2 :]])
        writer.writeheader()
        for row in rows:
            figures = {name: getattr(row, name) for name in names if name not in ("measures", "centred")}
            writer.writerow({**figures, **row.measures, **{name + CENTRED: row.centred[name] for name in row.centred}})


def run_name(config: str) -> str:
    """Return the name of an adapter's run: that of its configuration file, without the ending."""
    return Path(config).stem


def train_adapters(common: str, adapters: Sequence[str], runs: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Train each adapter that has no finished run in ``runs`` yet; an interrupted run is resumed.

    Args:
        common: Configuration without an adapter: a path, or ``cera://NAME``.
        adapters: Configurations of one adapter each, likewise.
        runs: Directory of the runs.
        overrides: Further options for every run.

    Returns:
        The names of the runs that failed.

    Raises:
        Stopped: A signal stopped a run.
    """
    return [run_name(config) for config in adapters if not _train(common, config, runs, overrides)]


def _train(common: str, adapter: str, runs: Path, overrides: Sequence[str]) -> bool:
    """Train one adapter; return whether its run has finished."""
    name = run_name(adapter)
    resume = []
    try:
        if FinishedRun.read(runs / name).finished:
            return True
        resume = ["--ckpt_path=last"]
    except RunError:
        pass  # not begun
    configs = [f"--config={common}", f"--config={adapter}"]
    options = [f"--runs={runs}", f"--name={name}", "--answer_tokens=0", *overrides, *resume]
    print(f"\n=== {name} ===", flush=True)
    status = _wait_for([*TRAIN, *configs, *options])
    if status - 128 in SIGNALS:
        raise Stopped(signal.Signals(status - 128), "stopped; the same command resumes where it stopped.")
    return status == 0


def _wait_for(command: Sequence[str]) -> int:
    """Run a command and return its exit status. The first signal is passed on to it, which then saves its state."""
    process = subprocess.Popen(command, process_group=0)  # a terminal would send Ctrl-C to it as well: a second signal
    with stop_signals(process.send_signal):
        return process.wait()
