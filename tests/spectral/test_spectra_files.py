"""A file of spectra that is broken or something else is one error that names it, and so is its run."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cera.foreign_files import FileError
from cera.spectral.files import Spectra, spectra_files
from cera.spectral.sample import Sample

METADATA = {"layers": '["a.q_proj", "b.q_proj"]', "ranks": '{"a.q_proj": 4}'}
SIGMA = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)


def write(folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "spectra" / "step=7.safetensors"
    path.parent.mkdir()
    save_file(tensors, path, METADATA if metadata is None else metadata)
    return path


def test_spectra_are_read_as_they_were_saved(tmp_path):
    path = write(
        tmp_path, {"update/a.q_proj": SIGMA, "update/b.q_proj": SIGMA[:2].clone(), "latent/b.q_proj": SIGMA.float()}
    )
    spectra = Spectra.read(path)
    assert (spectra.step, spectra.ranks, list(spectra.values["update"])) == (
        7,
        {"a.q_proj": 4},
        ["a.q_proj", "b.q_proj"],
    )
    assert torch.equal(spectra.values["update"]["a.q_proj"], SIGMA)
    assert spectra.values["latent"]["b.q_proj"].dtype == torch.float64


def test_a_file_says_what_it_is_of(tmp_path):
    sample = Sample("answer", 7, "0123456789abcdef")
    values = {
        "update": {"a.q_proj": SIGMA},
        "update_centred": {"a.q_proj": SIGMA / 2},
        "weight": {"a.q_proj": SIGMA * 2},
    }
    spectra = Spectra(7, values, {"a.q_proj": 4}, {"a.q_proj": (6, 5)}, sample)
    spectra.save(tmp_path / spectra.file_name)
    read = Spectra.read(tmp_path / "step=7.safetensors")
    assert (read.sample, read.shapes, read.ranks) == (sample, spectra.shapes, spectra.ranks)
    assert torch.equal(read.values["update_centred"]["a.q_proj"], SIGMA / 2)
    with safe_open(tmp_path / "step=7.safetensors", "pt") as file:
        assert json.loads(file.metadata()["sample"]) == {"tokens": "answer", "count": 7, "data": sample.data}


def test_a_file_of_an_earlier_version_is_not_centred_of_all_tokens_and_unknown_data(tmp_path):
    spectra = Spectra.read(write(tmp_path, {"update/a.q_proj": SIGMA}))
    assert spectra.sample == Sample("all", None, None)
    assert list(spectra.values) == ["update"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"a.q_proj": SIGMA}, None, "a.q_proj must be MATRIX/LAYER"),
        ({"update/other": SIGMA}, None, "update/other must be MATRIX/LAYER, with a layer that the metadata list"),
        ({"weights/a.q_proj": SIGMA}, None, "weights/a.q_proj must be MATRIX/LAYER"),
        ({"update/a.q_proj": SIGMA[None]}, None, "update/a.q_proj must hold singular values"),
        ({"update/a.q_proj": SIGMA[:0]}, None, "update/a.q_proj must hold singular values"),
        ({"update/a.q_proj": SIGMA.long()}, None, "update/a.q_proj must hold singular values"),
        ({"update/a.q_proj": SIGMA.flip(0)}, None, "update/a.q_proj must hold singular values"),
        ({"update/a.q_proj": -SIGMA.flip(0)}, None, "update/a.q_proj must hold singular values"),
        ({"update/a.q_proj": SIGMA * torch.nan}, None, "update/a.q_proj must hold singular values"),
        ({"update/a.q_proj": SIGMA}, {}, "has no layers and ranks in its metadata"),
        ({"update/a.q_proj": SIGMA}, {"layers": "[", "ranks": "{}"}, "has no layers and ranks in its metadata"),
        ({"update/a.q_proj": SIGMA}, {"layers": "7", "ranks": "{}"}, "layers in the metadata must be a list of names"),
        ({"update/a.q_proj": SIGMA}, {**METADATA, "ranks": '{"a.q_proj": "4"}'}, "ranks in the metadata must map"),
        ({"update/a.q_proj": SIGMA}, {**METADATA, "ranks": "[4]"}, "ranks in the metadata must map"),
        ({"weight_centred/a.q_proj": SIGMA}, None, "weight_centred/a.q_proj must be MATRIX/LAYER"),
        ({"update/a.q_proj": SIGMA}, {**METADATA, "sample": "["}, "sample in the metadata is no JSON"),
        ({"update/a.q_proj": SIGMA}, {**METADATA, "sample": "[]"}, "sample in the metadata must be a mapping"),
        ({"update/a.q_proj": SIGMA}, {**METADATA, "sample": '{"tokens": "some"}'}, "sample in the metadata must have"),
        ({"update/a.q_proj": SIGMA}, {**METADATA, "sample": '{"count": "7"}'}, "sample in the metadata must have"),
        ({"update/a.q_proj": SIGMA}, {**METADATA, "shapes": '{"a.q_proj": [1]}'}, "shapes in the metadata must map"),
    ],
)
def test_what_is_no_spectrum_is_one_line(tmp_path, tensors, metadata, message):
    path = write(tmp_path, tensors, metadata)
    with pytest.raises(FileError, match=message) as caught:
        Spectra.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_one_line(tmp_path):
    path = write(tmp_path, {"update/a.q_proj": SIGMA})
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-1], json.dumps({"a": 1}).encode()):
        path.write_bytes(content)
        with pytest.raises(FileError, match="is not a whole safetensors file"):
            Spectra.read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(FileError, match="must be a file, and is a directory"):
        Spectra.read(path)


def test_files_of_other_names_are_no_spectra(tmp_path):
    path = write(tmp_path, {"update/a.q_proj": SIGMA})
    for name in ("step=.safetensors", "step=x.safetensors", "step=\u00b2.safetensors", f"step={'9' * 100}.safetensors"):
        path.with_name(name).write_bytes(b"")
    assert spectra_files(tmp_path) == {7: path}
    with pytest.raises(FileError, match=r"must be named step=N.safetensors"):
        Spectra.read(path.rename(path.with_name("newest.safetensors")))
