"""An adapter of one's own, in one file outside of the package: it trains, is measured, saved and loaded again."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import command, environment, losses
from conftest import REPOSITORY
from safetensors.torch import load_file

from cera.runs.saved_adapter import AdapterError, SavedAdapter

FILE = '''
"""CeRA with the cube of the latent: W0 x + s W_down (W_up x)^3."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import cera
from cera.adapters import ACTIVATIONS, BranchConfig, BranchModel


class Cube(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x**3


ACTIVATIONS["cube"] = Cube


class CubeModel(BranchModel):
    prefix = "cube_"


@cera.register_adapter(CubeModel)
@dataclass
class CubeConfig(BranchConfig):
    prefix: ClassVar[str] = "cube_"

    activation: str = "cube"
    default_placement = None  # beside linear layers
'''


def invoke(arguments: list[str], folder: Path) -> str:
    """Run a command in ``folder`` with today's code on the path, and return what it printed."""
    path = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    done = subprocess.run(
        arguments, cwd=folder, env={**environment(), "PYTHONPATH": path}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tiny_llama, tmp_path_factory) -> Path:
    """A folder with the file ``cube_adapter.py`` and a run of its adapter in ``runs/test``."""
    folder = tmp_path_factory.mktemp("own_adapter")
    (folder / "cube_adapter.py").write_text(FILE)
    settings = {"target_modules": ["q_proj", "v_proj"], "r": 8}
    config = {"model": {"adapter": {"class_path": "cube_adapter.CubeConfig", "init_args": settings}}}
    (folder / "cube.yaml").write_text(json.dumps(config))
    options = command(tiny_llama, folder / "runs", config=str(REPOSITORY / "configs" / "smol_cera.yaml"))[2:]
    options[2:2] = ["--config", "cube.yaml"]
    invoke([sys.executable, "-m", "cera", "train", *options], folder)
    return folder


def test_it_trains_and_is_saved_under_its_own_names(folder):
    run_dir = folder / "runs" / "test"
    assert len(losses(run_dir)) == 8
    weights = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    assert weights
    assert all(".cube_up." in name or ".cube_down." in name for name in weights)
    assert any(weight.any() for name, weight in weights.items() if "down" in name)
    assert json.loads((run_dir / "adapter" / "adapter_config.json").read_text())["peft_type"] == "CUBE"


def test_its_spectra_are_measured(folder):
    with (folder / "runs" / "test" / "metrics.csv").open() as file:
        ranks = [row["spectra/effective_rank/mean"] for row in csv.DictReader(file)]
    measured = [float(rank) for rank in ranks if rank]
    assert measured
    assert all(1 <= rank <= 8 for rank in measured)


def test_other_commands_load_it_from_the_run(folder):
    cera = [sys.executable, "-m", "cera"]
    out = ["--out", str(folder / "spectra.png")]
    printed = invoke([*cera, "spectra", "runs/test", *out], folder)
    assert "Cube" in printed
    evaluation = ["--config", str(REPOSITORY / "configs" / "eval_smol.yaml"), "--evaluation.task.limit=1"]
    sampling = ["--evaluation.sampling.max_new_tokens=2", "--dtype=float32"]
    printed = invoke([*cera, "evaluate", *evaluation, *sampling, "--adapter", "runs/test"], folder)
    assert "pass@1" in printed


def test_a_bare_adapter_directory_says_what_to_import_and_loads_then(folder, tmp_path, monkeypatch):
    adapter = folder / "runs" / "test" / "adapter"
    if "cube_adapter" in sys.modules:
        pytest.skip("cube_adapter is imported in this process already")
    with pytest.raises(AdapterError, match=r"'CUBE', which is not registered.*--import MODULE"):
        SavedAdapter.find(adapter)
    cera = [sys.executable, "-m", "cera", "evaluate", "--import", "cube_adapter"]
    evaluation = ["--config", str(REPOSITORY / "configs" / "eval_smol.yaml"), "--evaluation.task.limit=1"]
    sampling = ["--evaluation.sampling.max_new_tokens=2", "--dtype=float32", "--out", str(tmp_path)]
    assert "pass@1" in invoke([*cera, *evaluation, *sampling, "--adapter", str(adapter)], folder)
    monkeypatch.syspath_prepend(folder)
    import cube_adapter  # noqa: F401

    model = SavedAdapter.find(folder / "runs" / "test").load(torch.float32, "cpu")
    assert type(model.base_model).__name__ == "CubeModel"
