"""Spectra of one step of a run, and the files ``spectra/step=N.safetensors`` that hold them.

A file says what its numbers are of: the matrices are named ``update`` (as it is) and ``update_centred`` (minus the mean
over the tokens), and likewise for the latent; the sample has the kind, number and origin of the tokens. Files of
earlier versions hold matrices that are not centred, at all tokens without padding, of data that they do not name.

Examples:
    >>> spectra = Spectra.read(spectra_files("runs/smol_cera")[100])
    >>> spectra.values["update"]["model.layers.0.self_attn.q_proj"]  # (k,) fp64, descending
"""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors.torch import save_file
from torch import Tensor

from cera.foreign_files import FileError, open_safetensors
from cera.spectral.sample import Sample, Tokens

Quantity = Literal["update", "latent", "weight"]
"""Which matrix is measured (see ``cera.spectral``)."""

CENTRED = "_centred"
"""Ending of the names of matrices from which the mean over the tokens is subtracted."""

MATRICES = (*get_args(Quantity), *(f"{quantity}{CENTRED}" for quantity in ("update", "latent")))
"""Names of matrices in ``Spectra.values``; a weight has no tokens to take a mean over."""

LayerSpectra = dict[str, Tensor]
"""Singular values by layer name: (k,) fp64, descending."""


@dataclass(frozen=True)
class Spectra:
    """Singular values of all adapted layers at one step.

    Attributes:
        step: Number of optimizer steps done.
        values: Singular values by matrix (one of ``MATRICES``), then by layer.
        ranks: The adapter's r in each layer; layers without one are left out.
        shapes: Outputs and inputs of each layer (d, in) of which ``weight`` was measured.
        sample: The tokens that the update and the latent were measured at.
    """

    step: int
    values: dict[str, LayerSpectra]
    ranks: dict[str, int]
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    sample: Sample = field(default_factory=Sample)

    def save(self, path: Path) -> None:
        """Write the spectra to ``path``.

        The keys of the tensors are ``matrix/layer``; the metadata hold the order of the layers, their ranks and shapes,
        and the sample. ``read`` takes the step from the file's name, which should be that of ``file_name``.
        """
        tensors = {
            f"{matrix}/{name}": sigma for matrix, layers in self.values.items() for name, sigma in layers.items()
        }
        order = list(dict.fromkeys(name for layers in self.values.values() for name in layers))
        metadata = {"layers": order, "ranks": self.ranks, "shapes": self.shapes, "sample": asdict(self.sample)}
        save_file(tensors, path, {key: json.dumps(value) for key, value in metadata.items()})

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
            matrix, _, name = key.partition("/")
            if matrix not in MATRICES or name not in order:
                raise FileError(f"{path}: {key} must be MATRIX/LAYER, with a layer that the metadata list.")
            if not _is_spectrum(tensor):
                raise FileError(f"{path}: {key} must hold singular values: one row, finite, not negative, descending.")
            values.setdefault(matrix, {})[name] = tensor.double()
        ordered = {
            matrix: {name: layers[name] for name in order if name in layers} for matrix, layers in values.items()
        }
        return cls(step, ordered, ranks, _shapes(path, metadata), _sample(path, metadata))


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


def _shapes(path: Path, metadata: dict[str, str]) -> dict[str, tuple[int, int]]:
    shapes = _optional(path, metadata, "shapes")
    try:
        return {name: (int(outputs), int(inputs)) for name, (outputs, inputs) in shapes.items()}
    except (TypeError, ValueError) as error:
        raise FileError(f"{path}: shapes in the metadata must map layers to two integers.") from error


def _sample(path: Path, metadata: dict[str, str]) -> Sample:
    recorded = _optional(path, metadata, "sample")
    tokens, count, data = recorded.get("tokens", "all"), recorded.get("count"), recorded.get("data")
    if tokens not in get_args(Tokens) or not isinstance(count, int | None) or not isinstance(data, str | None):
        raise FileError(f"{path}: sample in the metadata must have tokens, their count and the data, got {recorded}.")
    return Sample(tokens, count, data)


def _optional(path: Path, metadata: dict[str, str], key: str) -> dict[str, Any]:
    """Return an entry of the metadata; an empty one for files of versions that did not write it."""
    try:
        entry = json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: {key} in the metadata is no JSON.") from error
    if not isinstance(entry, dict):
        raise FileError(f"{path}: {key} in the metadata must be a mapping, got {entry}.")
    return entry


def _is_spectrum(tensor: Tensor) -> bool:
    if tensor.ndim != 1 or not len(tensor) or not tensor.is_floating_point():
        return False
    return bool(tensor.isfinite().all() and (tensor >= 0).all() and (tensor.diff() <= 0).all())
