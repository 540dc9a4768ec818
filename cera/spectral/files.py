"""Spectra of one step of a run, and the files ``spectra/step=N.safetensors`` that hold them.

Examples:
    >>> spectra = Spectra.read(spectra_files("runs/smol_cera")[100])
    >>> spectra.values["update"]["model.layers.0.self_attn.q_proj"]  # (k,) fp64, descending
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Quantity = Literal["update", "latent", "weight"]
"""Which matrix is measured (see ``cera.spectral``)."""

LayerSpectra = dict[str, Tensor]
"""Singular values by layer name: (k,) fp64, descending."""


@dataclass(frozen=True)
class Spectra:
    """Singular values of all adapted layers at one step.

    Attributes:
        step: Number of optimizer steps done.
        values: Singular values by quantity, then by layer.
        ranks: The adapter's r in each layer; layers without one are left out.
    """

    step: int
    values: dict[str, LayerSpectra]
    ranks: dict[str, int]

    def save(self, path: Path) -> None:
        """Write the spectra to ``path``.

        The keys of the tensors are ``quantity/layer``; the metadata hold the order of the layers and their ranks.
        ``read`` takes the step from the file's name, which should be that of ``file_name``.
        """
        tensors = {
            f"{quantity}/{name}": sigma for quantity, layers in self.values.items() for name, sigma in layers.items()
        }
        order = list(dict.fromkeys(name for layers in self.values.values() for name in layers))
        save_file(tensors, path, {"layers": json.dumps(order), "ranks": json.dumps(self.ranks)})

    @property
    def file_name(self) -> str:
        """Name of the file in ``spectra/`` of a run directory."""
        return f"step={self.step}.safetensors"

    @classmethod
    def read(cls, path: Path) -> "Spectra":
        """Read a file that ``save`` wrote; its name must be ``step=N.safetensors``."""
        values: dict[str, LayerSpectra] = {}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118  # not a dict
                quantity, _, name = key.partition("/")
                values.setdefault(quantity, {})[name] = file.get_tensor(key)
        order = json.loads(metadata["layers"])
        ordered = {
            quantity: {name: layers[name] for name in order if name in layers} for quantity, layers in values.items()
        }
        return cls(_step_of(path), ordered, json.loads(metadata["ranks"]))


def spectra_files(run_dir: str | Path) -> dict[int, Path]:
    """Return the spectra files of a run directory by number of optimizer steps, ascending."""
    files = {_step_of(path): path for path in (Path(run_dir) / "spectra").glob("step=*.safetensors")}
    return dict(sorted(files.items()))


def _step_of(path: Path) -> int:
    return int(path.stem.partition("=")[2])
