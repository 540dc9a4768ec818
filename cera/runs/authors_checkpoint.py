"""Reads checkpoints of the CeRA authors' code (github.com/Howardisme/cera) as adapters that PEFT loads.

Example:
    >>> checkpoint = AuthorsCheckpoint.read(Path("best.pt"))
    >>> config, weights = checkpoint.convert(build_skeleton(base), activation="silu")

Their file holds the trained weights by the names of their modules, and since 2026 a ``config``. Read are CeRA of both
generations of names (``A``, ``B``; ``up_proj``, ``down_proj``) and both variants ("legacy" and "peft_aligned"), with a
learned mix or a recurrent latent, LoRA and DoRA. Not read are files that adapt only some of a model's layers.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from torch import Tensor, nn

from cera.adapters import CeraConfig
from cera.foreign_files import one_line, require_file
from cera.runs.adapter_settings import AdapterError

ACTIVATIONS = ("silu", "relu", "identity")
"""The activations of their code."""

LORA_ALPHA = 32
"""LoRA's alpha in their code, for every rank."""

PARTS = {
    "cera.A.weight": "cera_up.weight",
    "cera.up_proj.weight": "cera_up.weight",
    "cera.B.weight": "cera_down.weight",
    "cera.down_proj.weight": "cera_down.weight",
    "cera.gamma": "cera_activation.gamma",
    "cera.recurrent_inner.weight": "cera_activation.inner",
    "cera.recurrent_outer.weight": "cera_activation.outer",
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "m": "lora_magnitude_vector",
}
"""End of a weight's name in their files -> in a file of PEFT's. Their LoRA stores its matrices transposed."""

REQUIRED = {
    "CeRA": {"cera_up.weight", "cera_down.weight"},
    "LoRA": {"lora_A.weight", "lora_B.weight"},
    "DoRA": {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"},
}
"""Method -> the weights that each adapted module has."""

OPTIONAL = {"CeRA": ({"cera_activation.gamma"}, {"cera_activation.inner", "cera_activation.outer"})}
"""Method -> the further weights that all adapted modules may have."""


@dataclass(frozen=True)
class AuthorsCheckpoint:
    """One checkpoint, as it is in the file.

    Attributes:
        file: The file.
        method: ``CeRA``, ``LoRA`` or ``DoRA``.
        settings: Its ``config``; empty in older files.
        weights: Tensors by adapted module of the base, then by the end of their name in PEFT's files.
        progress: Steps and rows of the training so far, as far as the file says it.
    """

    file: Path
    method: str
    settings: dict[str, Any]
    weights: dict[str, dict[str, Tensor]]
    progress: dict[str, int]

    @classmethod
    def read(cls, file: Path) -> "AuthorsCheckpoint":
        """Read a file, which may hold tensors and plain values only.

        Raises:
            AdapterError: It is no such checkpoint, or has weights that are unknown, missing, NaN or infinite.
            FileError: It is missing.
        """
        try:
            content = torch.load(require_file(file), map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, AttributeError, LookupError) as error:
            raise AdapterError(f"{file} cannot be read as a checkpoint of torch.save: {one_line(error)}.") from error
        except Exception as error:  # a broken pickle may raise anything
            raise AdapterError(f"{file} is no checkpoint of tensors and plain values: {one_line(error)}.") from error
        state = content.get("model_state_dict") if isinstance(content, dict) else None
        if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
            raise AdapterError(f"{file} is no checkpoint of the authors' code: it has no model_state_dict of tensors.")
        method = content.get("model_type")
        if method not in REQUIRED:
            raise AdapterError(f"{file}: model_type must be one of {', '.join(REQUIRED)}, got {method!r}.")
        settings = content.get("config") or {}
        if not isinstance(settings, dict):
            raise AdapterError(f"{file}: config must be a mapping, got a {type(settings).__name__}.")
        progress = {name: content[name] for name in ("step", "data_count") if isinstance(content.get(name), int)}
        checkpoint = cls(file, method, settings, _by_module(file, state), progress)
        checkpoint._check_parts()
        return checkpoint

    def convert(
        self,
        skeleton: nn.Module,
        activation: str | None = None,
        alpha: float | None = None,
        recurrent_steps: int | None = None,
    ) -> tuple[PeftConfig, dict[str, Tensor]]:
        """Return the adapter's configuration and its weights by their names in ``adapter_model.safetensors``.

        Args:
            skeleton: The base model, which may be on the meta device.
            activation: One of ``ACTIVATIONS``, for a CeRA whose file does not say it.
            alpha: For a file that does not say it; by default the rank (CeRA) or ``LORA_ALPHA`` (LoRA and DoRA).
            recurrent_steps: For a recurrent CeRA whose file does not say it.

        Raises:
            AdapterError: The weights do not fit the base, or a setting is missing, contradicts the file's or is not
                supported.
        """
        ranks = self._ranks(skeleton)
        rank = Counter(ranks.values()).most_common(1)[0][0]
        shared: dict[str, Any] = {
            "r": rank,
            "rank_pattern": {module: r for module, r in ranks.items() if r != rank},
            "target_modules": sorted({module.rpartition(".")[2] for module in ranks}),
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
        }
        alpha = self._setting("alpha", "--alpha", alpha)
        dropout = self.settings.get("dropout")
        try:
            if self.method == "CeRA":
                steps = self._setting("recurrent_steps", "--recurrent-steps", recurrent_steps)
                variant = self._variant(rank, self._setting("act_fn", "--activation", activation), alpha, steps)
                config: PeftConfig = CeraConfig(**shared, **variant, dropout=0.1 if dropout is None else dropout)
            else:
                shared |= {"lora_alpha": alpha or LORA_ALPHA, "use_dora": self.method == "DoRA"}
                config = LoraConfig(**shared, lora_dropout=dropout or 0.0)
        except ValueError as error:
            raise AdapterError(f"{self.file}: {one_line(error)}.") from error
        transposed = ("lora_A.weight", "lora_B.weight")
        return config, {
            f"base_model.model.{module}.{part}": (tensor.T if part in transposed else tensor).contiguous()
            for module, parts in self.weights.items()
            for part, tensor in parts.items()
        }

    def _check_parts(self) -> None:
        """Check that all modules have the same weights: those of the method, and all or none of what is optional."""
        present = {part for parts in self.weights.values() for part in parts}
        expected = set(REQUIRED[self.method])
        for group in OPTIONAL.get(self.method, ()):
            expected |= group if present & group else set()
        for module, parts in self.weights.items():
            missing, unknown = sorted(expected - parts.keys()), sorted(parts.keys() - expected)
            if missing:
                raise AdapterError(f"{self.file} lacks the weight that is {missing[0]} of {module} here.")
            if unknown:
                raise AdapterError(f"{self.file}: {module} has {unknown[0]}, which is no weight of {self.method}.")

    def _ranks(self, skeleton: nn.Module) -> dict[str, int]:
        """Return the rank of each adapted module, having held all shapes against the base."""
        linears = {name: module for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)}
        if unknown := [module for module in self.weights if module not in linears]:
            raise AdapterError(f"{self.file} adapts {unknown[0]}, which is no linear layer of the base.")
        targets = {module.rpartition(".")[2] for module in self.weights}
        alike = [name for name in linears if name.rpartition(".")[2] in targets]
        if missing := [name for name in alike if name not in self.weights]:
            raise AdapterError(
                f"{self.file} adapts {len(self.weights)} of the base's {len(alike)} modules of these names, and not "
                f"{missing[0]}: it is of a base with another number of layers, or adapts only some of them."
            )
        ranks = {}
        for module, parts in self.weights.items():
            out, width = linears[module].weight.shape
            up = parts["cera_up.weight" if self.method == "CeRA" else "lora_A.weight"]
            r = ranks[module] = up.shape[0 if self.method == "CeRA" else -1] if up.ndim == 2 else 0
            shapes: dict[str, tuple[int, ...]] = {
                **{"cera_up.weight": (r, width), "cera_down.weight": (out, r), "cera_activation.gamma": (1,)},
                **{"cera_activation.inner": (r, r), "cera_activation.outer": (r, r)},
                **{"lora_A.weight": (width, r), "lora_B.weight": (r, out), "lora_magnitude_vector": (out,)},
            }
            for part, tensor in parts.items():
                if tensor.shape != shapes[part] or tensor.numel() == 0:
                    raise AdapterError(
                        f"{self.file}: the weight that is {part} of {module} here has the shape {tuple(tensor.shape)}, "
                        f"which does not fit a layer of ({out}, {width}) in the base."
                    )
        return ranks

    def _setting(self, name: str, option: str, given: Any) -> Any:
        """Return a setting of the file, or else the user's; they must not contradict each other."""
        value = self.settings.get(name)
        if value is not None and given is not None and given != value:
            raise AdapterError(f"{option}={given} contradicts {self.file}, whose config says {name}: {value!r}.")
        return given if value is None else value

    def _variant(self, rank: int, activation: str | None, alpha: float | None, steps: int | None) -> dict[str, Any]:
        """Return the settings of ``CeraConfig`` that give the formula of the file."""
        present = set().union(*self.weights.values())
        mixed, recurrent = "cera_activation.gamma" in present, "cera_activation.inner" in present
        aligned = self.settings.get("cera_variant", "peft_aligned" if mixed or recurrent else "legacy")
        if aligned not in ("legacy", "peft_aligned"):
            raise AdapterError(f"{self.file}: cera_variant must be legacy or peft_aligned, got {aligned!r}.")
        if (self.settings.get("cera_mix_mode") == "learned_mix") != mixed and "cera_mix_mode" in self.settings:
            raise AdapterError(
                f"{self.file}: cera_mix_mode {self.settings['cera_mix_mode']!r} and its weights disagree."
            )
        if mixed:
            activation = "learned_mix" if activation in (None, "silu") else activation
        elif recurrent:
            activation = activation or "identity"
        if activation is None:
            raise AdapterError(f"{self.file} does not say its activation: give --activation {'|'.join(ACTIVATIONS)}.")
        if activation not in ACTIVATIONS and not (mixed and activation == "learned_mix"):
            raise AdapterError(f"{self.file}: act_fn must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
        if recurrent and not steps:
            raise AdapterError(f"{self.file} does not say the steps of its recurrent latent: give --recurrent-steps.")
        if steps and not recurrent:
            raise AdapterError(f"{self.file} has recurrent_steps {steps}, and no weights of a recurrent latent.")
        variant: dict[str, Any] = {"activation": activation, "recurrent_steps": steps or 0}
        if aligned == "legacy":
            if alpha is not None and "alpha" not in self.settings:
                raise AdapterError(f"--alpha: the scale of {self.file}, a CeRA of the variant legacy, is 1.")
            self._check_scale(1.0)
            return {**variant, "init": "kaiming_normal", "scaling": 1.0}
        variant |= {"dropout_on": "input", "init": "kaiming_uniform"}
        if alpha is None:
            return {**variant, "scaling": float(self.settings.get("scale", 1.0))}
        self._check_scale(alpha / rank)
        return {**variant, "alpha": float(alpha)}

    def _check_scale(self, scale: float) -> None:
        named = self.settings.get("scale", scale)
        if named != scale:
            raise AdapterError(f"{self.file}: its scale {named!r} is not that of its variant, {scale:g}.")


def _by_module(file: Path, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors by module and by the end of their name in PEFT's files."""
    ends = "|".join(map(re.escape, PARTS))
    weights: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = re.fullmatch(rf"(.+)\.({ends})", str(name))
        if match is None:
            raise AdapterError(f"{file}: {name} is no weight of an adapter of the authors' code.")
        module, part = match[1], PARTS[match[2]]
        if part in weights.setdefault(module, {}):
            raise AdapterError(f"{file} has the weight that is {part} of {module} here under two names.")
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise AdapterError(f"{file}: {name} has values that are no finite floating-point numbers.")
        weights[module][part] = tensor.reshape(1) if part.endswith("gamma") and tensor.numel() == 1 else tensor
    return weights
