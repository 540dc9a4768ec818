"""Configurations of CeRA and of the module-level adapters it is compared to, in the form PEFT expects of a tuner."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from peft import PeftConfig
from torch import Tensor, nn

from cera.adapters.activations import ACTIVATIONS, make_activation
from cera.adapters.targets import Placement

Granularity = Literal["weight", "module"]
"""Where CeRA lies: beside single linear layers, or beside whole attention or feed-forward modules (Table 3)."""
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
        self._demand("dropout", _is_number(self.dropout) and 0 <= self.dropout < 1, "in [0, 1)")
        self._demand("scaling", _is_number(self.scaling) and math.isfinite(self.scaling), "a finite number")
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


@dataclass
class CeraConfig(BranchConfig):
    """Settings of CeRA, ``h = W0 x + s * W_down(D(silu(W_up x)))`` (paper Eq. 2).

    Args:
        scaling: The scalar ``s`` on the update. The paper does not tie it to ``r`` as LoRA's alpha/r does.
        granularity: ``"weight"`` puts a branch beside each target, a linear layer; ``target_modules=None`` takes
            PEFT's targets for LoRA in the model's architecture, queries and values in most. ``"module"``
            is the ablation of Table 3: the branch lies beside a whole attention module (the default target) or
            any other module that maps hidden states to hidden states, reads its input and adds to its output.
        target_parameters: Names (matched as suffixes) of the weights of fused experts to adapt beside
            ``target_modules``, such as ``["experts.gate_up_proj", "experts.down_proj"]``; see
            ``cera.adapters.experts``. For experts only, give ``target_modules=[]``.
        use_dora: The hybrid that the paper leaves to future work: DoRA's magnitude on top of the branch. See
            ``cera.adapters.layer.CeraLayer.delta`` for what is normalized.

    The other settings are those of ``BranchConfig``.
    """

    method: ClassVar[str] = "CERA"
    prefix: ClassVar[str] = "cera_"

    dropout: float = field(default=0.1, metadata={"help": "Dropout on the latent, in [0, 1)."})
    granularity: Granularity = field(
        default="weight", metadata={"help": "Beside linear layers ('weight') or whole modules ('module')."}
    )
    use_dora: bool = field(default=False, metadata={"help": "Learn the norm of each output apart, as DoRA does."})
    target_parameters: list[str] | None = field(
        default=None, metadata={"help": "Names of the weights of fused experts to adapt as well (default: none)."}
    )

    @property
    def default_placement(self) -> Placement | None:
        """Attention modules with granularity ``"module"``, else linear layers."""
        return "attention" if self.granularity == "module" else None

    def _check(self) -> None:
        super()._check()
        self._demand_one_of("granularity", get_args(Granularity))
        self._demand("use_dora", isinstance(self.use_dora, bool), "true or false")
        if self.use_dora and (self.granularity == "module" or self.target_parameters):
            raise ValueError(f"{self._name}.use_dora needs linear targets: only their weight has rows to normalize.")
        names = self.target_parameters
        self._demand("target_parameters", names is None or isinstance(names, list | set | tuple), "a list of names")
        if names and self.granularity == "module":
            raise ValueError(f"{self._name}.target_parameters needs granularity='weight': a weight is not a module.")


@dataclass
class HoulsbyConfig(BranchConfig):
    """Settings of Houlsby et al.'s adapter (arXiv 1902.00751; paper Table 4), after attention and feed-forward.

    ``h + s * (W_down D(act(W_up h + b_up)) + b_down)`` with ``h`` the output of the module, before it is added to the
    residual stream; ``s`` is 1 in their work. They draw both projections from a normal distribution with a standard
    deviation of 0.01 (0.001 in their code), truncated at two deviations, which starts near the identity. Here ``W_up``
    is drawn so and ``W_down`` is zero, which starts at the identity exactly; ``init_weights=False`` draws both. They
    train the layer norms as well, which here stay frozen unless ``modules_to_save`` names them.

    Args:
        placement: Modules to adapt if ``target_modules`` names none: both, as in their work, ``"attention"`` or
            ``"ffn"``.
        init_std: Standard deviation of the random weights.

    The other settings are those of ``BranchConfig``. As in their work, there is no dropout on the latent by default.
    """

    method: ClassVar[str] = "HOULSBY"
    prefix: ClassVar[str] = "houlsby_"
    sequential: ClassVar[bool] = True
    biased: ClassVar[bool] = True

    activation: str = field(default="gelu", metadata={"help": ACTIVATION_HELP})
    placement: Placement = field(
        default="both", metadata={"help": "Where, if target_modules is not given: attention, ffn or both."}
    )
    init_std: float = field(default=0.01, metadata={"help": "Standard deviation of the random weights."})

    @property
    def default_placement(self) -> Placement | None:
        """The configured ``placement``."""
        return self.placement

    def draw(self, weight: Tensor) -> None:
        """Fill ``weight`` at random: normal with standard deviation ``init_std``, truncated at two deviations."""
        nn.init.trunc_normal_(weight, std=self.init_std, a=-2 * self.init_std, b=2 * self.init_std)

    def _check(self) -> None:
        super()._check()
        self._demand_one_of("placement", get_args(Placement))
        positive = _is_number(self.init_std) and math.isfinite(self.init_std) and self.init_std > 0
        self._demand("init_std", positive, "a positive number")


@dataclass
class ParallelConfig(BranchConfig):
    """Settings of the (scaled) parallel adapter of He et al. (arXiv 2110.04366; paper Table 4).

    ``module(x) + s * W_down(D(relu(W_up x)))`` with ``x`` the module's input, as their Table 1 has it, without the
    biases that their code adds. They find it best beside the feed-forward module, with ``s = 4``: the defaults.

    Args:
        placement: Modules to adapt if ``target_modules`` names none: ``"ffn"``, ``"attention"`` or both.

    The other settings are those of ``BranchConfig``.
    """

    method: ClassVar[str] = "PARALLEL"
    prefix: ClassVar[str] = "parallel_"

    scaling: float = field(default=4.0, metadata={"help": "The scalar s on the update."})
    activation: str = field(default="relu", metadata={"help": ACTIVATION_HELP})
    placement: Placement = field(
        default="ffn", metadata={"help": "Where, if target_modules is not given: attention, ffn or both."}
    )

    @property
    def default_placement(self) -> Placement | None:
        """The configured ``placement``."""
        return self.placement

    def _check(self) -> None:
        super()._check()
        self._demand_one_of("placement", get_args(Placement))


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_tokens(value: object) -> bool:
    """Return whether ``value`` is a list of one or more distinct token ids."""
    if not isinstance(value, list | tuple) or not value or len(set(map(repr, value))) < len(value):
        return False
    return all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
