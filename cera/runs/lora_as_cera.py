"""Reads a LoRA as CeRA with the identity as activation, so that LoRA and CeRA adapters can be on one model.

PEFT refuses to mix the two methods. A LoRA is the linear CeRA: ``W_up`` is its A, ``W_down`` its B, and ``s`` its
``lora_alpha / r`` (or ``lora_alpha / sqrt(r)`` with ``use_rslora``).

Example:
    >>> model = PeftModel.from_pretrained(base, "my-cera", adapter_name="tenant-a")
    >>> model = cera.load_lora_as_cera(model, "my-lora", "tenant-b")
    >>> model.generate(**two_prompts, adapter_names=["tenant-a", "tenant-b"])
"""

import math
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from peft.utils import set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from cera.adapters import CeraConfig, CeraLayer
from cera.foreign_files import one_line
from cera.runs.adapter_settings import CONFIG_FILE, AdapterError, make_config, read_settings
from cera.runs.adapter_weights import WEIGHTS_FILE, check_loaded, read_weights

ROOT = "base_model.model."
PARTS = {".lora_A.weight": ".cera_up.weight", ".lora_B.weight": ".cera_down.weight"}
SAME = ("r", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "task_type")
"""Settings that mean the same in both configurations."""
PASSED_OVER = (
    *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_alpha", "use_rslora", "alpha_pattern", "init_lora_weights"),  # which are read here
    *("lora_dropout", "fan_in_fan_out", "runtime_config", "megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # of starts that init_lora_weights names
)
"""Settings that may have any value. All others must be as in ``LoraConfig()``."""
STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base's weights as they are."""


def load_lora_as_cera(
    model: nn.Module, path: str | Path, adapter_name: str = "default", autocast_adapter_dtype: bool = True
) -> PeftModel:
    """Load a LoRA into a model as a CeRA adapter that computes the same.

    Args:
        model: A base model, or a PEFT model with CeRA adapters, to which the adapter is added.
        path: Directory with ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT saves a LoRA.
        adapter_name: Name of the adapter in the model.
        autocast_adapter_dtype: Whether weights in half precision become fp32, as in ``PeftModel.load_adapter``.

    Returns:
        The PEFT model: ``model`` itself, whose active adapter stays as it is, or a new one in eval mode. The adapter is
        frozen.

    Raises:
        AdapterError: The directory holds no LoRA that CeRA can express, or weights that are not those that its
            configuration asks for in this model. The message names the file, and the setting or the weight, and the
            model is as it was.
        FileError: A file is missing or cannot be read.
        ValueError: The model has adapters of another method, or one of this name.
    """
    folder = Path(path)
    if isinstance(model, PeftModel):
        _check_model(model, adapter_name)
    config, weights = _as_cera(folder)
    try:
        if isinstance(model, PeftModel):
            model.add_adapter(adapter_name, config, autocast_adapter_dtype=autocast_adapter_dtype)
            adapted = model
        else:
            adapted = cast(
                PeftModel,
                get_peft_model(
                    cast(Any, model), config, adapter_name=adapter_name, autocast_adapter_dtype=autocast_adapter_dtype
                ),
            ).eval()
        check_loaded(folder, weights, adapted, adapter_name)
    except ValueError as error:  # the weights or the targets do not fit
        _remove(model, adapter_name)
        if not isinstance(error, AdapterError):
            raise AdapterError(f"{folder / CONFIG_FILE} cannot be used: {one_line(error)}.") from error
        message = str(error)
        for lora, cera in PARTS.items():
            message = message.replace(cera, lora)  # the names in the file
        raise AdapterError(message) from error
    set_peft_model_state_dict(adapted, weights, adapter_name)
    return adapted


def _check_model(model: PeftModel, adapter_name: str) -> None:
    methods = {PeftType(config.peft_type).value for config in model.peft_config.values()}
    if methods - {"CERA"}:
        raise ValueError(
            f"load_lora_as_cera: model has adapters of the method {', '.join(sorted(methods))}; it must be a base "
            "model or have CeRA adapters alone. Load its LoRAs by load_lora_as_cera, too."
        )
    if adapter_name in model.peft_config:
        raise ValueError(f"load_lora_as_cera: the model has an adapter {adapter_name!r} already.")


def _as_cera(folder: Path) -> tuple[CeraConfig, dict[str, Tensor]]:
    """Return configuration and weights of a LoRA in CeRA's terms."""
    lora = _read_config(folder)
    weights = read_weights(folder)
    others = [name for name in weights if not name.startswith(ROOT) or not name.endswith(tuple(PARTS))]
    if others:
        raise AdapterError(f"{folder / WEIGHTS_FILE}: {others[0]} is no lora_A or lora_B of a linear layer.")
    scalings = {name: _scaling(lora, name) for name in weights if name.endswith(".lora_B.weight")}
    common = set(scalings.values())
    scaling = common.pop() if len(common) == 1 else 1.0
    for name, own in scalings.items():
        if own != scaling:  # CeRA has one s in all layers; the rest of this layer's goes into W_down
            weights[name] = weights[name].float() * own
    settings = {name: getattr(lora, name) for name in SAME}
    try:
        config = CeraConfig(**settings, activation="identity", scaling=scaling, dropout=0.0, inference_mode=True)
    except ValueError as error:
        raise AdapterError(f"{folder / CONFIG_FILE} cannot be used: {one_line(error)}.") from error
    parts = ((name, next(part for part in PARTS if name.endswith(part))) for name in weights)
    return config, {name.removesuffix(part) + PARTS[part]: weights[name] for name, part in parts}


def _read_config(folder: Path) -> LoraConfig:
    """Return the configuration of a LoRA that is nothing but an A and a B beside linear layers."""
    file, settings = folder / CONFIG_FILE, read_settings(folder)
    if settings["peft_type"] != "LORA":
        raise AdapterError(f"{file}: peft_type must be 'LORA', got {settings['peft_type']!r}.")
    lora, usual = cast(LoraConfig, make_config(folder, settings)), LoraConfig()
    for name, value in settings.items():
        default = getattr(usual, name, None)
        if name not in (*SAME, *PASSED_OVER) and value != default and (value or default):
            raise AdapterError(f"{file}: {name}={value!r} has no counterpart in CeRA; it must be {default!r}.")
    start = lora.init_lora_weights
    if start not in STARTS:
        raise AdapterError(
            f"{file}: init_lora_weights={start!r} changes the weights of the base model. Save the LoRA with "
            "path_initial_model_for_weight_conversion, which makes it an ordinary one."
        )
    return lora


def _scaling(lora: LoraConfig, name: str) -> float:
    """Return the factor on the update of the module whose B has this name."""
    module = name.removeprefix(ROOT).removesuffix(".lora_B.weight")
    r, alpha = (
        pattern.get(get_pattern_key(list(pattern), module), value)
        for pattern, value in ((lora.rank_pattern or {}, lora.r), (lora.alpha_pattern or {}, lora.lora_alpha))
    )
    return alpha / (math.sqrt(r) if lora.use_rslora else r)


def _remove(model: nn.Module, adapter_name: str) -> None:
    """Undo what putting in an adapter did, even if it came to an end halfway."""
    configs = cast(dict[str, Any], getattr(model, "peft_config", {}))
    configs.pop(adapter_name, None)
    if not isinstance(model, PeftModel) and not configs and hasattr(model, "peft_config"):
        del model.peft_config
    for name, layer in list(model.named_modules()):
        if isinstance(layer, CeraLayer) and adapter_name in layer.branch_up:
            layer.delete_adapter(adapter_name)
            if not layer.branch_up:  # it was put in with this adapter
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, layer.base_layer)
