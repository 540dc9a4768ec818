"""Holds the weight files of a base model in a local directory against its ``config.json``, without loading them.

Example:
    >>> check_weight_files("models/llama-3-8b")  # milliseconds, or a BackboneError that names the file or the weight
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from transformers import AutoModelForCausalLM
from transformers.utils import logging

from cera.foreign_files import open_safetensors, read_json_object, require_file
from cera.models.backbone import BackboneError, check_complete, reading

SINGLE = ("model.safetensors", "pytorch_model.bin")
SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def check_weight_files(base: str) -> None:
    """Check the weights of a base model in a local directory; bases of other kinds are checked when they are loaded.

    transformers puts the weights on the meta device, so that only the files' headers are read.

    Raises:
        BackboneError: There are no weights, a file is missing or broken, or a weight is missing or of another shape.
        FileError: A file cannot be read.
    """
    folder = Path(base)
    if not folder.is_dir():
        return
    for file in _weight_files(folder):
        if require_file(file).suffix == ".safetensors":
            with open_safetensors(file):
                pass  # reads the header
    with reading(base, "weights"), _quiet():
        options = {"device_map": "meta", "ignore_mismatched_sizes": True, "trust_remote_code": False}
        _, loaded = cast(Any, AutoModelForCausalLM.from_pretrained)(base, output_loading_info=True, **options)
    check_complete(base, loaded)


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers would load, in its order of preference."""
    for single, sharded in zip(SINGLE, SHARDED, strict=True):
        if (folder / single).exists():
            return [folder / single]
        if (folder / sharded).exists():
            shards = read_json_object(folder / sharded).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
                raise BackboneError(f"{folder / sharded}: weight_map must map the names of weights to files.")
            return [folder / name for name in sorted(set(shards.values()))]
    raise BackboneError(f"model.base={folder}: it has no weights (looked for {', '.join([*SINGLE, *SHARDED])}).")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bar and its table of weights, which the error says in one line."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
