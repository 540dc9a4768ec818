"""The notebooks: each runs from its first cell to its last on a tiny Llama, and what is committed reads well."""

import os
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import REPOSITORY

from scripts.notebooks import execute

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
NAMES = ["01_quickstart", "02_ceiling", "03_spectra", "04_learning_rates", "05_ablations", "06_reasoning"]

LONG = ("03_spectra", "06_reasoning")
"""Notebooks that take a minute even on a tiny Llama."""

LARGEST = 600_000
"""Maximum size of a notebook with its outputs, in bytes."""

MOST_LINES = 20
"""Maximum number of lines of a cell of code."""


def tiny_study(folder: Path, base: str) -> Path:
    """Write the study of the notebooks for another base, with less around it."""
    path = REPOSITORY / "configs" / "studies" / "smol_quick.yaml"
    content = yaml.safe_load(path.read_text())
    content["base"] = str(path.parent / content["base"])
    content["axes"]["adapter"] = {name: str(path.parent / file) for name, file in content["axes"]["adapter"].items()}
    content["settings"] |= {
        "model.base": base,
        "trainer.precision": "32-true",
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.callbacks": [{"class_path": "cera.callbacks.SpectralTracker"}],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "study.yaml"


@pytest.fixture(scope="session")
def settings(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the notebooks' kernels."""
    folder = tmp_path_factory.mktemp("notebooks")
    return {
        "CERA_NOTEBOOK_BASE": tiny_llama,
        "CERA_NOTEBOOK_STUDY": str(tiny_study(folder, tiny_llama)),
        "CERA_NOTEBOOK_RUNS": str(folder / "runs"),
        "CERA_NOTEBOOK_PROBLEMS": "2",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(REPOSITORY),
    }


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_all_notebooks_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in LONG), id=path.stem) for path in NOTEBOOKS]
)
def test_a_notebook_runs(path: Path, settings: dict[str, str]) -> None:
    os.environ.update(settings)  # which conftest takes back
    before = path.read_bytes()
    executed = execute(path)
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    assert all(output.output_type != "error" for output in outputs(executed))
    assert path.read_bytes() == before
    if path.stem in ("01_quickstart", "03_spectra", "04_learning_rates", "06_reasoning"):
        assert any("image/png" in output.get("data", {}) for output in outputs(executed))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_has_outputs_that_read_well(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count, cell.source
            assert len(cell.source.splitlines()) <= MOST_LINES, cell.source
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        assert output.get("data", {}).keys() != {"text/plain"}, output.data  # a table or figure that was not drawn
    text = path.read_text()
    assert str(Path.home()) not in text
    assert str(REPOSITORY) not in text
