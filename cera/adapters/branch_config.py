"""The settings that all adapters of this package share, in the form PEFT expects of a tuner's configuration."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from peft import PeftConfig
from torch import Tensor, nn

from cera.adapters.activations import ACTIVATIONS, make_activation
from cera.adapters.targets import Placement

ACTIVATION_HELP = f"One of {', '.join(ACTIVATIONS)}, or any name of transformers' ACT2FN."


@dataclass
class BranchConfig(PeftConfig):
    """The settings that the adapters of this package share: an update ``s * W_down(D(act(W_up x)))``.

    Args:
        r: Width of the latent, the bottleneck. ``W_up`` is (r, in), ``W_down`` is (out, r).
        scaling: The scalar ``s`` on the update.
        activation: Name of the non-linearity, in ``cera.adapters.ACTIVATIONS`` or transformers' ``ACT2FN``.
        dropout: Probability of dropping a latent unit, in training only, in [0, 1).
        target_modules: Names (matched as suffixes) or one regular expression of the modules to adapt. ``None``
            takes the method's usual targets in the model's architecture.
        exclude_modules: Names or a regular expression of modules to leave alone.
        layers_to_transform: Index or indices of the layers to adapt; ``None`` adapts all.
        layers_pattern: Name of the module list the indices count in, if it has an unusual one.
        rank_pattern: Module name or regular expression -> ``r``, overriding ``r`` for those modules.
        modules_to_save: Further modules, trained whole and saved with the adapter.
        trainable_token_indices: Tokens whose embeddings are trained and saved with the adapter, such as new special
            tokens: a list for the input embedding (and the output, if the two are tied), or lists by module name.
        init_weights: ``True`` starts ``W_down`` at zero, so that step 0 is the base model exactly. ``False``
            draws it as ``W_up`` is drawn.

    Raises:
        ValueError: A field is out of its range; the message names the field and what would be right.
    """

    method: ClassVar[str]
    """Name of the ``PeftType``, which ``cera.register_adapter`` adds."""
    prefix: ClassVar[str]
    """Beginning of the names of the adapter's weights, such as ``cera_``."""
    sequential: ClassVar[bool] = False
    """Whether a module-level adapter reads the module's output, and not its input."""
    biased: ClassVar[bool] = False
    """Whether both projections have a bias, zero at the start."""

    r: int = field(default=64, metadata={"help": "Width of the latent (rank of both projections)."})
    scaling: float = field(default=1.0, metadata={"help": "The scalar s on the update."})
    activation: str = field(default="silu", metadata={"help": ACTIVATION_HELP})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the latent, in [0, 1)."})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Names or a regex of the modules to adapt (default: by method and architecture)."},
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
    trainable_token_indices: list[int] | dict[str, list[int]] | None = field(
        default=None, metadata={"help": "Tokens whose embeddings are trained as well: a list, or lists by module."}
    )
    init_weights: bool = field(default=True, metadata={"help": "Start as an exact no-op (W_down = 0)."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # PEFT's own convention
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        self._check()

    @property
    def default_placement(self) -> Placement | None:
        """The whole modules that are adapted by default; ``None`` if linear layers are adapted."""
        raise NotImplementedError

    def scaling_at(self, r: int) -> float:
        """Return the factor ``s`` on the update of a module whose latent has width ``r``."""
        return self.scaling

    def latent_map(self, r: int) -> nn.Module:
        """Return a new module that maps the pre-activation ``W_up x`` (..., r) to the latent, before dropout."""
        return make_activation(self.activation)

    def draw(self, weight: Tensor) -> None:
        """Fill ``weight`` (out, in) at random: uniform in +-1/sqrt(in), as ``nn.Linear`` and LoRA's A."""
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))

    def _check(self) -> None:
        self._demand("r", _is_positive_int(self.r), "a positive integer")
        if not isinstance(self.rank_pattern, dict):
            raise ValueError(f"{self._name}.rank_pattern must map module names to ranks, got {self.rank_pattern!r}.")
        for name, rank in self.rank_pattern.items():
            if not _is_positive_int(rank):
                raise ValueError(f"{self._name}.rank_pattern[{name!r}] must be a positive integer, got {rank!r}.")
        self._demand("dropout", is_number(self.dropout) and 0 <= self.dropout < 1, "in [0, 1)")
        self._demand("scaling", is_number(self.scaling) and math.isfinite(self.scaling), "a finite number")
        self._demand("activation", isinstance(self.activation, str), "the name of an activation")
        try:
            make_activation(self.activation)
        except ValueError as error:
            raise ValueError(f"{self._name}.activation cannot be used: {error}") from error
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            kinds = (list, set, tuple) if name == "modules_to_save" else (list, set, tuple, str)
            value = getattr(self, name)
            self._demand(name, value is None or isinstance(value, kinds), "a list of module names")
        by_module = self.trainable_token_indices
        lists = list(by_module.values()) if isinstance(by_module, dict) else [by_module]
        valid = by_module is None or (bool(lists) and all(map(_are_tokens, lists)))
        self._demand("trainable_token_indices", valid, "a list of token ids, or such lists by module name")
        self._demand("init_weights", isinstance(self.init_weights, bool), "true or false")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(f"{self._name}.layers_to_transform needs target_modules as a list, not as a regex.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"{self._name}.layers_pattern needs layers_to_transform to be set too.")

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _demand(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"{self._name}.{name} must be {what}, got {getattr(self, name)!r}.")

    def _demand_one_of(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        self._demand(name, isinstance(value, str) and value in choices, f"one of {', '.join(choices)}")


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_tokens(value: object) -> bool:
    """Return whether ``value`` is a list of one or more distinct token ids."""
    if not isinstance(value, list | tuple) or not value or len(set(map(repr, value))) < len(value):
        return False
    return all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in value)


def is_number(value: object) -> bool:
    """Return whether ``value`` is a number, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_positive(value: object) -> bool:
    """Return whether ``value`` is a positive, finite number."""
    return isinstance(value, int | float) and is_number(value) and 0 < value < math.inf
