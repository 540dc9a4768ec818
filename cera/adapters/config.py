"""Configuration of a CeRA adapter, in the form PEFT expects of a tuner."""

import math
from dataclasses import dataclass, field

from peft import PeftConfig
from peft.utils import PeftType

from cera.adapters.activations import ACTIVATIONS


@dataclass
class CeraConfig(PeftConfig):
    """Settings of CeRA, ``h = W0 x + s * W_down(D(silu(W_up x)))`` (paper Eq. 2).

    Args:
        r: Width of the latent, the rank of both projections. ``W_up`` is (r, in), ``W_down`` is (out, r).
        scaling: The scalar ``s`` on the update. The paper does not tie it to ``r`` as LoRA's alpha/r does.
        activation: Name of the non-linearity, one of ``cera.adapters.ACTIVATIONS``.
        dropout: Probability of dropping a latent unit, in training only, in [0, 1).
        target_modules: Names (matched as suffixes) or one regular expression of the linear modules to adapt.
            ``None`` takes what PEFT takes for LoRA in the model's architecture: queries and values in most.
        exclude_modules: Names or a regular expression of modules to leave alone.
        layers_to_transform: Index or indices of the layers to adapt; ``None`` adapts all.
        layers_pattern: Name of the module list the indices count in, if it has an unusual one.
        rank_pattern: Module name or regular expression -> ``r``, overriding ``r`` for those modules.
        modules_to_save: Further modules, trained whole and saved with the adapter.
        init_weights: ``True`` starts ``W_down`` at zero, so that step 0 is the base model exactly. ``False``
            draws it at random, which is of use in tests only.

    Raises:
        ValueError: A field is out of its range; the message names the field and what would be right.
    """

    r: int = field(default=64, metadata={"help": "Width of the latent (rank of both projections)."})
    scaling: float = field(default=1.0, metadata={"help": "The scalar s on the update."})
    activation: str = field(default="silu", metadata={"help": f"One of {', '.join(ACTIVATIONS)}."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout on the latent, in [0, 1)."})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Names or a regex of the linear modules to adapt (default: queries and values)."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names or a regex of modules to leave alone."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the layers to adapt (default: all)."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the module list that layers_to_transform counts in."}
    )
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Module name or regex -> its own r."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules, trained whole and saved with the adapter."}
    )
    init_weights: bool = field(default=True, metadata={"help": "Start as an exact no-op (W_down = 0)."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.CERA  # type: ignore[attr-defined]  # added by cera.adapters.register
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # PEFT's own convention
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        self._check()

    def _check(self) -> None:
        if not _is_positive_int(self.r):
            raise ValueError(f"CeraConfig.r must be a positive integer, got {self.r!r}.")
        if not isinstance(self.rank_pattern, dict):
            raise ValueError(f"CeraConfig.rank_pattern must map module names to ranks, got {self.rank_pattern!r}.")
        for name, rank in self.rank_pattern.items():
            if not _is_positive_int(rank):
                raise ValueError(f"CeraConfig.rank_pattern[{name!r}] must be a positive integer, got {rank!r}.")
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            raise ValueError(f"CeraConfig.dropout must be in [0, 1), got {self.dropout!r}.")
        if not (_is_number(self.scaling) and math.isfinite(self.scaling)):
            raise ValueError(f"CeraConfig.scaling must be a finite number, got {self.scaling!r}.")
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            raise ValueError(f"CeraConfig.activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}.")
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            value = getattr(self, name)
            kinds = (list, set, tuple) if name == "modules_to_save" else (list, set, tuple, str)
            if value is not None and not isinstance(value, kinds):
                raise ValueError(f"CeraConfig.{name} must be a list of module names, got {value!r}.")
        if not isinstance(self.init_weights, bool):
            raise ValueError(f"CeraConfig.init_weights must be true or false, got {self.init_weights!r}.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("CeraConfig.layers_to_transform needs target_modules as a list, not as a regex.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("CeraConfig.layers_pattern needs layers_to_transform to be set too.")


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
