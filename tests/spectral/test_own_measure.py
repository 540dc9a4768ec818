"""A measure of one's own, in one file outside of the package: every output of spectra has it."""

import csv
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
from command_line import command, environment, losses
from conftest import REPOSITORY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cera.spectral.files import Spectra, spectra_files

FILE = """
from torch import Tensor

from cera.spectral.measures import register_measure


@register_measure("stable_rank_test", heading="stable rank", chart="Stable rank of the update")
def stable_rank(singular_values: Tensor) -> float:
    return (singular_values / singular_values.max()).square().sum().item()
"""


def invoke(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cera", *arguments], cwd=folder, capture_output=True, text=True, timeout=400,
        env={**environment(), "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tiny_llama, tmp_path_factory) -> Path:
    """A folder with the measure's file, and a run of four steps in ``runs/test``."""
    folder = tmp_path_factory.mktemp("own_measure")
    (folder / "stable_rank.py").write_text(FILE)
    config = str(REPOSITORY / "configs" / "smol_cera.yaml")
    options = command(tiny_llama, folder / "runs", "--trainer.max_steps=4", config=config)[2:]
    invoke(["train", "--import", "stable_rank", *options], folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, float]:
    """The measure of each layer's update at the last step, from the singular values that the run recorded."""
    spectra = Spectra.read(spectra_files(folder / "runs" / "test")[4])
    layers = spectra.values["update"]
    return {name: float((sigma / sigma.max()).square().sum()) for name, sigma in layers.items()}


def test_metrics_csv_has_its_means_and_layers(folder, expected):
    run_dir = folder / "runs" / "test"
    assert losses(run_dir, "spectra/stable_rank_test/mean")[3] == pytest.approx(fmean(expected.values()), rel=1e-5)
    queries = [value for name, value in expected.items() if name.endswith("q_proj")]
    assert losses(run_dir, "spectra/stable_rank_test/q_proj")[3] == pytest.approx(fmean(queries), rel=1e-5)
    assert losses(run_dir, "spectra_by_layer/stable_rank_test/q_proj/00")[3] == pytest.approx(queries[0], rel=1e-5)


def test_tensorboard_has_its_scalars_and_chart(folder, expected):
    events = EventAccumulator(str(folder / "runs" / "test"))
    events.Reload()
    (scalar,) = events.Scalars("spectra/stable_rank_test/mean")
    assert scalar.value == pytest.approx(fmean(expected.values()), rel=1e-5)
    layout = next(event for event in events.summary_metadata if "custom_scalars" in event)
    assert b"Stable rank of the update" in events.Tensors(layout)[0].tensor_proto.string_val[0]


def test_the_table_and_the_csv_file_have_a_column(folder, expected):
    printed = invoke(
        ["spectra", "--import", "stable_rank", "runs/test", "--csv", "measures.csv", "--out", "spectra.png"], folder
    )
    header, *_ = [line for line in printed.splitlines() if "ER" in line]
    assert "stable rank" in header
    assert f"{fmean(expected.values()):.2f}" in printed
    with (folder / "measures.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = [float(row["stable_rank_test"]) for row in rows if row["stable_rank_test"] and row["centred"] == "False"]
    assert sorted(measured) == pytest.approx(sorted(expected.values()), rel=1e-4)


def test_without_the_import_no_output_has_it(folder):
    printed = invoke(["spectra", "runs/test"], folder)
    assert "ER" in printed
    assert "stable rank" not in printed
