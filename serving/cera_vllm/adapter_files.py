"""An adapter's directory as PEFT saves it: its settings and tensors, read and held against each other.

Nothing here needs vLLM: the front end checks an adapter's copy with it, and the workers load one.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex  # which vLLM needs, too; unlike re it can give up
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cera_vllm.activations import CODES

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
METHODS = ("CERA", "LORA")
SCALING = 4.0
"""What a CeRA without `scaling` in its file has: the default of `CeraConfig`."""
PARTS = {
    "CERA": {"cera_up.weight": "up", "cera_down.weight": "down", "cera_activation.gamma": "gamma"},
    "LORA": {"lora_A.weight": "up", "lora_B.weight": "down"},
}
"""End of a tensor's name, by method -> the part of the branch."""
LORA_EMBEDDING = re.compile(r"(.+\.lora_embedding_[AB]|.+\.(embed_tokens|lm_head)\.base_layer\.weight)")
"""Tensors of LoRA on embeddings, which vLLM itself checks."""
PREFIX = "base_model.model."
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST = torch.finfo(torch.float32).max
PATIENCE = 0.05
"""Seconds that a pattern of an adapter's settings may take for one name: a server must not hang on a tenant's."""
UNSUPPORTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "granularity": (lambda value: value not in (None, "weight"), "an adapter beside whole modules"),
    "use_dora": (bool, "the hybrid with DoRA"),
    "target_parameters": (bool, "an adapter of fused experts"),
    "recurrent_steps": (bool, "a recurrent latent"),
    "modules_to_save": (bool, "an adapter with whole modules of its own"),
    "trainable_token_indices": (bool, "an adapter with embeddings of its own"),
}
"""Field of a CeRA configuration -> whether a value cannot be served, and what it makes the adapter."""


class AdapterError(ValueError):
    """An adapter that cannot be served; the message says why."""


@dataclass(frozen=True)
class AdapterSettings:
    """What is needed of ``adapter_config.json``.

    Attributes:
        method: ``"CERA"`` or ``"LORA"``.
        r: Width of the latent.
        rank_pattern: Module name or regular expression -> its own width.
        activation: A name in ``CODES``; ``"identity"`` for LoRA.
        scaling: The factor ``s`` on a CeRA's update; ``None`` for LoRA, whose factor vLLM computes.
        alpha: If given, ``s = alpha / r`` with each module's own ``r``.
        targets: ``target_modules``: names that end modules' names, or one regular expression; ``None`` if the
            configuration restricts them further, by layers or exclusions.
    """

    method: str
    r: int
    rank_pattern: dict[str, int] = field(default_factory=dict)
    activation: str = "identity"
    scaling: float | None = None
    alpha: float | None = None
    targets: tuple[str, ...] | str | None = None

    def rank(self, module: str) -> int:
        """Return the width of the latent beside ``module``, by PEFT's rule: the first pattern that ends its name."""
        matches = (rank for key, rank in self.rank_pattern.items() if _matches(rf"(.*\.)?({key})$", module))
        return next(matches, self.r)

    def scale(self, module: str) -> float:
        """Return the factor ``s`` on a CeRA's update beside ``module``."""
        assert self.scaling is not None
        return self.scaling if self.alpha is None else self.alpha / self.rank(module)

    def targets_module(self, module: str) -> bool:
        """Return whether the configuration says that ``module`` is adapted; always false if it restricts targets."""
        if isinstance(self.targets, str):
            return _matches(self.targets, module)
        return any(module == name or module.endswith(f".{name}") for name in self.targets or ())


@dataclass
class Branch:
    """The tensors beside one module: ``up`` (r, in), ``down`` (out, r), and the ``gamma`` (1,) of a learned mix."""

    up: Tensor | None = None
    down: Tensor | None = None
    gamma: Tensor | None = None


def method_of(folder: Path) -> str | None:
    """Return ``peft_type`` of a directory's configuration; ``None`` where there is none to be read."""
    try:
        settings = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return settings.get("peft_type") if isinstance(settings, dict) else None


def read_settings(folder: Path) -> AdapterSettings:
    """Read ``adapter_config.json``.

    Raises:
        AdapterError: The file is missing or broken, or the adapter is of a kind that cannot be served.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
    except FileNotFoundError as error:
        raise AdapterError(f"{CONFIG_FILE} is missing.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{CONFIG_FILE} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{CONFIG_FILE} must hold an object, got {type(config).__name__}.")
    method = config.get("peft_type") or "LORA"
    if method not in METHODS:
        raise AdapterError(f"peft_type {method!r} cannot be served: {' and '.join(METHODS)} can.")
    r, rank_pattern = config.get("r"), config.get("rank_pattern") or {}
    if not isinstance(rank_pattern, dict):
        raise AdapterError(f"rank_pattern must map names to ranks, got {rank_pattern!r}.")
    for name, rank in (("r", r), *((f"rank_pattern[{key!r}]", rank) for key, rank in rank_pattern.items())):
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise AdapterError(f"{name} must be a positive integer, got {rank!r}.")
    for key in rank_pattern:
        _check_regex("rank_pattern", key)
    assert isinstance(r, int)
    settings = AdapterSettings(method, r, rank_pattern, targets=_targets(config))
    return settings if method == "LORA" else _cera_settings(settings, config)


def _cera_settings(settings: AdapterSettings, config: dict[str, Any]) -> AdapterSettings:
    for name, (cannot, kind) in UNSUPPORTED.items():
        if cannot(config.get(name)):
            raise AdapterError(f"{name}={config[name]!r}: {kind} cannot be served; weight-level CeRA can.")
    activation = config.get("activation", "silu")
    if not isinstance(activation, str) or activation not in CODES:
        raise AdapterError(f"activation {activation!r} cannot be served: {', '.join(CODES)} can.")
    scaling, alpha = config.get("scaling", SCALING), config.get("alpha")
    for name, value in (("scaling", scaling), ("alpha", 1.0 if alpha is None else alpha)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST:
            raise AdapterError(f"{name} must be a finite number, got {value!r}.")
    return AdapterSettings(
        settings.method, settings.r, settings.rank_pattern, activation, scaling, alpha, settings.targets
    )


def _targets(config: dict[str, Any]) -> tuple[str, ...] | str | None:
    targets = config.get("target_modules")
    if config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return None
    if isinstance(targets, str):
        if targets == "all-linear":
            return None
        _check_regex("target_modules", targets)
        return targets
    if targets is None:
        return None
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise AdapterError(f"target_modules must be names or a regular expression, got {targets!r}.")
    return tuple(targets)


def _check_regex(name: str, pattern: str) -> None:
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise AdapterError(f"{name}: {pattern!r} is no regular expression: {error}.") from error


def _matches(pattern: str, name: str) -> bool:
    """Return whether a pattern of an adapter's settings matches a whole name."""
    try:
        return regex.fullmatch(pattern, name, timeout=PATIENCE) is not None
    except TimeoutError as error:
        raise AdapterError(f"the pattern {pattern!r} takes too long to match a name.") from error


def read_branches(folder: Path, settings: AdapterSettings) -> dict[str, Branch]:
    """Read ``adapter_model.safetensors``: the full name of each adapted module -> its tensors.

    Of a LoRA the tensors of embeddings are left out.

    Raises:
        AdapterError: The file is missing, truncated or not of this format, a tensor is missing or does not belong
            there, has another shape than the settings say, or holds a number that is not finite.
    """
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        pickled = any((folder / name).exists() for name in ("adapter_model.bin", "adapter_model.pt"))
        reason = " There is a pickled file: save the adapter with safetensors." if pickled else ""
        raise AdapterError(f"{WEIGHTS_FILE} is missing.{reason}")
    branches: dict[str, Branch] = {}
    others = 0
    try:
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dict
                module, part = _parse(name, settings.method)
                if part is None:
                    others += 1
                    continue
                tensor = tensors.get_tensor(name)
                if tensor.dtype not in DTYPES or not torch.isfinite(tensor).all():
                    raise AdapterError(f"{name} holds values that are not finite floating-point numbers.")
                setattr(branches.setdefault(module, Branch()), part, tensor)
    except SafetensorError as error:
        raise AdapterError(f"{WEIGHTS_FILE} is truncated or no safetensors file: {error}.") from error
    if not branches and not others:
        raise AdapterError(f"{WEIGHTS_FILE} holds no tensors.")
    for module, branch in branches.items():
        _check_branch(module, branch, settings)
    return branches


def _parse(name: str, method: str) -> tuple[str, str | None]:
    """Return the module and the part of the branch that a tensor's name says; no part for a LoRA's embeddings."""
    for suffix, part in PARTS[method].items():
        if name.startswith(PREFIX) and name.endswith(f".{suffix}"):
            return name[len(PREFIX) : -len(suffix) - 1], part
    if method == "LORA" and LORA_EMBEDDING.fullmatch(name):
        return name, None
    raise AdapterError(f"{WEIGHTS_FILE} holds {name!r}, which is no tensor of a {method} branch beside a linear layer.")


def _check_branch(module: str, branch: Branch, settings: AdapterSettings) -> None:
    names = {part: suffix for suffix, part in PARTS[settings.method].items()}
    for part in ("up", "down"):
        if getattr(branch, part) is None:
            raise AdapterError(f"{module} lacks the tensor {names[part]}.")
    assert branch.up is not None
    assert branch.down is not None
    has_gamma = settings.activation == "learned_mix"
    if has_gamma != (branch.gamma is not None):
        raise AdapterError(f"{module} {'lacks' if has_gamma else 'has'} the tensor {names['gamma']}.")
    if branch.gamma is not None and branch.gamma.numel() != 1:
        raise AdapterError(f"{module}: {names['gamma']} must hold one number, got {tuple(branch.gamma.shape)}.")
    if settings.method == "LORA" and "experts" in module.split("."):  # where r counts for each expert
        return
    r = settings.rank(module)
    shapes = tuple(branch.up.shape), tuple(branch.down.shape)
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][0] != r or shapes[1][1] != r:
        raise AdapterError(
            f"{module}: {names['up']} and {names['down']} must be (r, in) and (out, r) with r={r}, got "
            f"{shapes[0]} and {shapes[1]}."
        )
