"""A trained adapter on disk, in a run directory or in a directory that PEFT wrote.

Example:
    >>> model = SavedAdapter.find("runs/smol_cera").load()
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from peft import PeftModel

import cera.adapters  # noqa: F401  # makes CeRA's adapter files loadable
from cera.foreign_files import one_line, read_json_object, read_text
from cera.models.backbone import Quantization, build_skeleton, load_model, load_tokenizer
from cera.models.weight_files import check_weight_files
from cera.runs.adapter_settings import CONFIG_FILE, AdapterError, import_method, make_config, read_settings
from cera.runs.adapter_weights import WEIGHTS_FILE, check_loaded, check_weights, read_weights
from cera.runs.finished import read_config

__all__ = ["AdapterError", "SavedAdapter"]


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
        """Return the adapter in a run directory or in a directory that PEFT wrote, held against its base model.

        No weights of the base are loaded.

        Args:
            path: The directory.
            base: Base model to use instead of the one that the adapter names.

        Raises:
            AdapterError: The directory holds no adapter, one of a method that no imported module has registered, or one
                whose files are broken or do not belong together; the message names the file and the tensor or field.
            BackboneError: The base model cannot be loaded.
            FileError: A file is missing or cannot be read.
            RunError: The directory is a run whose ``config.yaml`` cannot be read.
        """
        path = Path(path)
        is_run = (path / "config.yaml").is_file() and not (path / CONFIG_FILE).is_file()
        folder = path / "adapter" if is_run else path
        if not (folder / CONFIG_FILE).is_file():
            where = f"{path} is a run without adapter/" if is_run else f"{path} holds neither a run nor an adapter"
            raise AdapterError(f"{where} (looked for config.yaml and {folder / CONFIG_FILE}).")
        trained = read_config(path)["model"] if is_run else {}
        trained_adapter = trained.get("adapter")
        settings = read_settings(folder)
        class_path = trained_adapter.get("class_path") if isinstance(trained_adapter, dict) else None
        import_method(folder, settings["peft_type"], class_path)
        quantization = trained.get("quantization")
        if quantization not in (None, *get_args(Quantization)):
            raise AdapterError(
                f"{path / 'config.yaml'}: model.quantization must be null or one of "
                f"{', '.join(get_args(Quantization))}, got {quantization!r}."
            )
        named = base or settings.get("base_model_name_or_path")
        if not named:
            raise AdapterError(f"{folder / CONFIG_FILE} has no base_model_name_or_path: name the base model (--base).")
        saved = cls(folder, named, quantization)
        saved.check()
        return saved

    def check(self) -> None:
        """Hold configuration and weights against each other and against the base; see ``find`` for what is raised."""
        config = make_config(self.folder, self.settings)
        weights = read_weights(self.folder)
        check_weight_files(self.base)
        check_weights(self.folder, weights, config, build_skeleton(self.base))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The adapter's ``adapter_config.json``."""
        return read_settings(self.folder)

    @cached_property
    def chat_template(self) -> str | None:
        """The chat template of the tokenizer that was saved beside the adapter; ``None`` if none was."""
        file, earlier = self.folder / "chat_template.jinja", self.folder / "tokenizer_config.json"
        if file.is_file():
            return read_text(file)
        template = read_json_object(earlier).get("chat_template") if earlier.is_file() else None
        return template if isinstance(template, str) else None

    def tokenizer(self) -> Any:
        """Return the base's tokenizer with ``chat_template``, which rendered the adapter's training data."""
        tokenizer = load_tokenizer(self.base)
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        return tokenizer

    def digest(self) -> str:
        """Return the SHA-256 of the weights in hexadecimal, which tells apart two adapters of the same name."""
        with (self.folder / WEIGHTS_FILE).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def load(self, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> PeftModel:
        """Return the base model with the adapter in it, in eval mode.

        Args:
            dtype: Data type of both; ``None`` chooses bf16 on a GPU and fp32 on a CPU.
            device: Device of both; ``None`` chooses the first GPU, if there is one.

        Raises:
            AdapterError: The adapter does not fit the base.
            BackboneError: The base model cannot be loaded.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.float32 if str(device) == "cpu" else torch.bfloat16)
        backbone = load_model(self.base, dtype, self.quantization)
        if self.quantization is None:
            backbone = backbone.to(device)
        try:
            model = PeftModel.from_pretrained(backbone, str(self.folder), autocast_adapter_dtype=False)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:  # `check_weights` passes over some methods
            raise AdapterError(f"{self.folder} cannot be loaded into {self.base}: {one_line(error)}.") from error
        check_loaded(self.folder, read_weights(self.folder), model)
        return model.eval()
