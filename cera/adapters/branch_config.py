"""The settings of adapters that are a branch: an update ``s * W_down(D(act(W_up x)))``."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from cera.adapters.activations import ACTIVATIONS, make_activation
from cera.adapters.targets import Placement
from cera.adapters.targets_config import TargetsConfig

ACTIVATION_HELP = f"One of {', '.join(ACTIVATIONS)}, or any name of transformers' ACT2FN."


@dataclass
class BranchConfig(TargetsConfig):
    """The settings of an adapter that is a branch: an update ``s * W_down(D(act(W_up x)))``.

    Args:
        r: Width of the latent, the bottleneck. ``W_up`` is (r, in), ``W_down`` is (out, r).
        scaling: The scalar ``s`` on the update.
        activation: Name of the non-linearity, in ``cera.adapters.ACTIVATIONS`` or transformers' ``ACT2FN``.
        dropout: Probability of dropping a latent unit, in training only, in [0, 1).
        rank_pattern: Module name or regular expression -> ``r``, overriding ``r`` for those modules.
        init_weights: ``True`` starts ``W_down`` at zero, so that step 0 is the base model exactly. ``False``
            draws it as ``W_up`` is drawn.

    The other settings are those of ``TargetsConfig``.

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
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Module name or regex -> its own r."})
    init_weights: bool = field(default=True, metadata={"help": "Start as an exact no-op (W_down = 0)."})

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
        super()._check()
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
        self._demand("init_weights", isinstance(self.init_weights, bool), "true or false")


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: object) -> bool:
    """Return whether ``value`` is a number, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_positive(value: object) -> bool:
    """Return whether ``value`` is a positive, finite number."""
    return isinstance(value, int | float) and is_number(value) and 0 < value < math.inf
