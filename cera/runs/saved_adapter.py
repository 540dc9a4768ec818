"""A trained adapter on disk, in a run directory or in a directory that PEFT wrote.

Example:
    >>> model = SavedAdapter.find("runs/smol_cera").load()
"""

import hashlib
import importlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

import cera.adapters  # noqa: F401  # makes CeRA's adapter files loadable
from cera.models.backbone import Quantization, load_model


class AdapterError(ValueError):
    """The directory holds no adapter; the message names the files that were looked for."""


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter's directory and its base model.

    Attributes:
        folder: Directory of ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: Name of the base model, as ``cera.models.backbone`` reads it.
        quantization: Quantization of the base in the run that trained the adapter.
    """

    folder: Path
    base: str
    quantization: Quantization | None = None

    @classmethod
    def find(cls, path: str | Path, base: str | None = None) -> "SavedAdapter":
        """Return the adapter in a run directory or in a directory that PEFT wrote.

        Args:
            path: The directory.
            base: Base model to use instead of the one that the adapter names.

        Raises:
            AdapterError: The directory holds no adapter, or one of a method that no imported module has registered.
        """
        path = Path(path)
        run = path / "config.yaml"
        folder = path / "adapter" if run.is_file() else path
        if not (folder / "adapter_config.json").is_file():
            where = (
                f"{path} is a run without adapter/" if run.is_file() else f"{path} holds neither a run nor an adapter"
            )
            raise AdapterError(f"{where} (looked for config.yaml and {folder / 'adapter_config.json'}).")
        model = yaml.safe_load(run.read_text())["model"] if run.is_file() else {}
        settings = json.loads((folder / "adapter_config.json").read_text())
        _import_method(folder, settings["peft_type"], model.get("adapter", {}).get("class_path"))
        return cls(folder, base or settings["base_model_name_or_path"], model.get("quantization"))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The adapter's ``adapter_config.json``."""
        return json.loads((self.folder / "adapter_config.json").read_text())

    def digest(self) -> str:
        """Return the SHA-256 of the weights in hexadecimal, which tells apart two adapters of the same name."""
        with (self.folder / "adapter_model.safetensors").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def load(self, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> PeftModel:
        """Return the base model with the adapter in it, in eval mode.

        Args:
            dtype: Data type of both; ``None`` chooses bf16 on a GPU and fp32 on a CPU.
            device: Device of both; ``None`` chooses the first GPU, if there is one.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.float32 if str(device) == "cpu" else torch.bfloat16)
        backbone = load_model(self.base, dtype, self.quantization)
        if self.quantization is None:
            backbone = backbone.to(device)
        model = PeftModel.from_pretrained(backbone, str(self.folder), autocast_adapter_dtype=False)
        return model.eval()


def _import_method(folder: Path, method: str, class_path: str | None) -> None:
    """Import the module that registers an adapter's method with PEFT; see ``cera.register_adapter``.

    Args:
        folder: Directory of the adapter, for the error message.
        method: ``peft_type`` of the adapter.
        class_path: Class path of its configuration, which a run directory records.

    Raises:
        AdapterError: The method is unknown, and no module that registers it can be imported.
    """
    reason = f"{folder} holds an adapter of the method {method!r}, which is not registered with PEFT"
    if method not in PEFT_TYPE_TO_CONFIG_MAPPING and class_path is not None:
        module = class_path.rpartition(".")[0]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise AdapterError(f"{reason}, and its module {module!r} cannot be imported: {error}.") from error
    if method not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise AdapterError(
            f"{reason}. Import the module that registers it first: `cera COMMAND --import MODULE ...` or, in code, "
            "before the adapter is loaded."
        )
