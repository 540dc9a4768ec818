"""Spectra of one step of a run, and the files ``spectra/step=N.safetensors`` that hold them.

Examples:
    >>> spectra = Spectra.read(spectra_files("runs/smol_cera")[100])
    >>> spectra.values["update"]["model.layers.0.self_attn.q_proj"]  # (k,) fp64, descending
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from safetensors.torch import save_file
from torch import Tensor

from cera.foreign_files import FileError, open_safetensors

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
        """Read a file that ``save`` wrote; its name must be ``step=N.safetensors``.

        Raises:
            FileError: The file is broken, or holds something else than spectra; the message names it and the tensor.
        """
        step = _step_of(path)
        if step is None:
            raise FileError(f"{path} must be named step=N.safetensors, with the number of steps done.")
        tensors, metadata = _read_safetensors(path)
        order, ranks = _layers_and_ranks(path, metadata)
        values: dict[str, LayerSpectra] = {}
        for key, tensor in tensors.items():
            quantity, _, name = key.partition("/")
            if quantity not in get_args(Quantity) or name not in order:
                raise FileError(f"{path}: {key} must be QUANTITY/LAYER, with a layer that the metadata list.")
            if not _is_spectrum(tensor):
                raise FileError(f"{path}: {key} must hold singular values: one row, finite, not negative, descending.")
            values.setdefault(quantity, {})[name] = tensor.double()
        ordered = {
            quantity: {name: layers[name] for name in order if name in layers} for quantity, layers in values.items()
        }
        return cls(step, ordered, ranks)


def spectra_files(run_dir: str | Path) -> dict[int, Path]:
    """Return the spectra files of a run directory by number of optimizer steps, ascending."""
    steps = {path: _step_of(path) for path in (Path(run_dir) / "spectra").glob("step=*.safetensors")}
    return dict(sorted((step, path) for path, step in steps.items() if step is not None))


def _step_of(path: Path) -> int | None:
    """Return the step in a file's name; ``None`` for a name that this package does not give."""
    match = re.fullmatch(r"step=([0-9]{1,18})\.safetensors", path.name)
    return None if match is None else int(match[1])


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with open_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118  # not a dict


def _layers_and_ranks(path: Path, metadata: dict[str, str]) -> tuple[list[str], dict[str, int]]:
    """Return the order of the layers and their ranks from a file's metadata."""
    try:
        layers, ranks = json.loads(metadata["layers"]), json.loads(metadata["ranks"])
    except (KeyError, ValueError, RecursionError) as error:
        raise FileError(f"{path} has no layers and ranks in its metadata: not a file of spectra.") from error
    if not isinstance(layers, list) or not all(isinstance(name, str) for name in layers):
        raise FileError(f"{path}: layers in the metadata must be a list of names.")
    if not isinstance(ranks, dict) or not all(type(rank) is int and rank > 0 for rank in ranks.values()):
        raise FileError(f"{path}: ranks in the metadata must map layers to positive integers.")
    return layers, ranks


def _is_spectrum(tensor: Tensor) -> bool:
    if tensor.ndim != 1 or not len(tensor) or not tensor.is_floating_point():
        return False
    return bool(tensor.isfinite().all() and (tensor >= 0).all() and (tensor.diff() <= 0).all())
