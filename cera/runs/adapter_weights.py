"""Holds the weights in an adapter's file against those that its configuration asks for in its base model.

PEFT loads what it can: of a weight that the file lacks it keeps the random start, and it skips what it does not know.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftType, get_peft_model
from peft.utils import get_peft_model_state_dict
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from torch import Tensor, nn

from cera.adapters import BranchModel, with_current_prefix
from cera.foreign_files import FileError, one_line, open_safetensors
from cera.runs.adapter_settings import CONFIG_FILE, AdapterError

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of ``adapter_model.safetensors`` by name.

    Raises:
        AdapterError: The file is missing, not a whole safetensors file, or has a value that is NaN or infinite.
    """
    file = folder / WEIGHTS_FILE
    if not file.exists() and (folder / PICKLE).exists():
        raise AdapterError(
            f"{folder / PICKLE} is a pickle, which can run code when it is read. Save the adapter as {WEIGHTS_FILE}: "
            "PEFT's save_pretrained does so by default."
        )
    try:
        with open_safetensors(file) as tensors:
            weights = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  # not a dict
    except FileError as error:
        raise AdapterError(str(error)) from error
    wrong = [name for name, tensor in weights.items() if tensor.dtype in FLOATS and not tensor.isfinite().all()]
    if wrong:
        raise AdapterError(f"{file}: {wrong[0]} has values that are NaN or infinite{_and_others(wrong)}.")
    return weights


def check_weights(folder: Path, weights: Mapping[str, Tensor], config: PeftConfig, skeleton: nn.Module) -> None:
    """Check that the weights are those of the adapter, without loading the base.

    Methods that PEFT cannot put on a model without weights are passed over: ``check_loaded`` holds for those, too.

    Args:
        folder: Directory of the adapter.
        weights: Result of ``read_weights``.
        config: Configuration of the adapter.
        skeleton: The base on the meta device; the adapter is put into it.

    Raises:
        AdapterError: The adapter does not fit the base, or a weight is missing, unknown, or of another shape or type.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            model = get_peft_model(skeleton, config, low_cpu_mem_usage=True)
        check_loaded(folder, weights, model)
    except AdapterError:
        raise
    except NotImplementedError:  # torch's: an operation that has no result without data
        return
    except Exception as error:  # each method raises errors of its own
        raise AdapterError(
            f"{folder / CONFIG_FILE}: {type(config).__name__} cannot be applied to its base model: {one_line(error)}."
        ) from error


def check_loaded(folder: Path, weights: Mapping[str, Tensor], model: Any, adapter_name: str = "default") -> None:
    """Check that the weights are those that ``model`` holds as one of its adapters.

    Args:
        folder: Directory of the adapter.
        weights: Result of ``read_weights``.
        model: A PEFT model, which may be on the meta device.
        adapter_name: Name of the adapter.

    Raises:
        AdapterError: A weight is missing, unknown, or of another shape or type.
    """
    file = folder / WEIGHTS_FILE
    with warnings.catch_warnings(action="ignore"):
        expected = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    base_weights = model.state_dict()  # an embedding that was resized or adapted is saved beside the adapter
    by_name = _current_names(weights, model, adapter_name)
    missing = [name for name in expected if name not in by_name]
    unknown = [name for name in by_name if name not in expected and name not in base_weights]
    if missing or unknown:
        problems = []
        if missing:
            problems.append(f"lacks {len(missing)} of the {len(expected)} weights of the adapter, such as {missing[0]}")
        if unknown:
            problems.append(f"has {len(unknown)} that are not of this adapter, such as {unknown[0]}")
        raise AdapterError(f"{file} {' and '.join(problems)}. {CONFIG_FILE} or the base model may be another's.")
    for name, tensor in by_name.items():
        right = expected[name] if name in expected else base_weights[name]
        if tensor.shape != right.shape:
            raise AdapterError(
                f"{file}: {name} has the shape {tuple(tensor.shape)}, and must have {tuple(right.shape)} by "
                f"{CONFIG_FILE} and the base model."
            )
        if tensor.dtype not in FLOATS if right.is_floating_point() else tensor.is_floating_point():
            wanted = "float16, bfloat16, float32 or float64" if right.is_floating_point() else "integers"
            raise AdapterError(f"{file}: {name} is {tensor.dtype}, and must be {wanted}.")


def _current_names(weights: Mapping[str, Tensor], model: Any, adapter_name: str) -> dict[str, Tensor]:
    """Return the weights by the names of today: earlier files of this package, and of PEFT, have others."""
    config = model.peft_config[adapter_name]
    if isinstance(model.base_model, BranchModel):
        return {with_current_prefix(name, model.base_model.prefix): tensor for name, tensor in weights.items()}
    if config.peft_type == PeftType.LORA:
        return convert_peft_adapter_state_dict_for_transformers(model, config, dict(weights))
    return dict(weights)


def _and_others(names: list[str]) -> str:
    return f", as have {len(names) - 1} other tensors" if len(names) > 1 else ""
