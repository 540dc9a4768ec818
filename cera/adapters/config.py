"""Configurations of CeRA and of the module-level adapters it is compared to."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, get_args

from torch import Tensor, nn

from cera.adapters.branch_config import ACTIVATION_HELP, BranchConfig, is_positive
from cera.adapters.recurrent import RecurrentLatent
from cera.adapters.targets import Placement

Granularity = Literal["weight", "module"]
"""Where CeRA lies: beside single linear layers, or beside whole attention or feed-forward modules (Table 3)."""
Init = Literal["kaiming_uniform", "kaiming_normal", "calibrated"]
"""How ``W_up`` starts; see ``CeraConfig``."""
DropoutOn = Literal["latent", "input"]
"""What dropout acts on: the latent (Eq. 2) or the input of ``W_up``."""


LORA_LIKE_SCALING = 4.0
"""CeRA's default ``s``: with SiLU's slope of 1/2 at zero the scale of a LoRA with ``alpha = 2r``."""


@dataclass
class CeraConfig(BranchConfig):
    """Settings of CeRA, ``h = W0 x + s * W_down(D(silu(W_up x)))`` (paper Eq. 2), and of the variants of its authors.

    ``paper``, ``authors`` and ``aligned`` return the three CeRAs that are published. The defaults of ``scaling`` and
    ``dropout`` are what our studies support (``docs/choosing.md``).

    Args:
        scaling: The scalar ``s`` on the update, which the paper leaves open, and does not tie to ``r`` as LoRA's
            alpha/r. SiLU's slope at zero is 1/2, so that with ``s = 4`` CeRA has the scale of a LoRA with
            ``alpha = 2r`` there, and LoRA's learning rates fit.
        dropout: Probability of dropping a unit of the latent, or of the input, in training. The paper has 0.1.
        alpha: If given, ``s = alpha / r`` with each module's own ``r``, in place of ``scaling``.
        activation: See ``BranchConfig``. ``learned_mix`` trains one more scalar in each module.
        dropout_on: ``"latent"`` drops latent units (Eq. 2), ``"input"`` the inputs of ``W_up``, as LoRA does.
        init: How ``W_up`` starts. ``"kaiming_uniform"``: uniform in +-1/sqrt(in), as LoRA's A, a standard deviation of
            ``1/sqrt(3 in)``. ``"kaiming_normal"``: normal with ``sqrt(2/in)``. ``"calibrated"``: the first, scaled once
            by ``cera.calibrate`` so that the pre-activation ``W_up x`` of every module has a root mean square of
            ``calibration_std``; ``CausalLM`` does it before the first step. Until then it is the first.
        calibration_std: Root mean square of the pre-activations that ``init="calibrated"`` aims at.
        recurrent_steps: Number of residual steps on the latent; see ``cera.adapters.recurrent``. 0 has none.
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

    scaling: float = field(default=LORA_LIKE_SCALING, metadata={"help": "The scalar s on the update."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the latent or the input, in [0, 1)."})
    granularity: Granularity = field(
        default="weight", metadata={"help": "Beside linear layers ('weight') or whole modules ('module')."}
    )
    use_dora: bool = field(default=False, metadata={"help": "Learn the norm of each output apart, as DoRA does."})
    target_parameters: list[str] | None = field(
        default=None, metadata={"help": "Names of the weights of fused experts to adapt as well (default: none)."}
    )
    init: Init = field(
        default="kaiming_uniform", metadata={"help": "How W_up starts: kaiming_uniform, kaiming_normal or calibrated."}
    )
    calibration_std: float = field(
        default=1.0, metadata={"help": "Root mean square of the pre-activations that init=calibrated aims at."}
    )
    alpha: float | None = field(default=None, metadata={"help": "If given, s = alpha / r, in place of scaling."})
    dropout_on: DropoutOn = field(
        default="latent", metadata={"help": "Drop units of the latent, or of the input of W_up ('input')."}
    )
    recurrent_steps: int = field(default=0, metadata={"help": "Number of residual steps on the latent (0: none)."})

    @classmethod
    def paper(cls, r: int, **settings: Any) -> Self:
        """Return the CeRA of the paper (v5): Eq. 2 with SiLU, and dropout 0.1 on the latent (App. A).

        What the paper leaves open is ``s = 1`` ("a scaling scalar") as in the authors' code, and ``W_up`` starts as
        LoRA's A.

        Args:
            r: Width of the latent.
            settings: Further settings, which override those of the preset.
        """
        preset = {"activation": "silu", "dropout": 0.1, "dropout_on": "latent", "init": "kaiming_uniform"}
        return cls(**{"r": r, "scaling": 1.0, **preset, **settings})

    @classmethod
    def authors(cls, r: int, **settings: Any) -> Self:
        """Return the CeRA of the authors' code (its variant "legacy"): ``paper`` with ``init="kaiming_normal"``.

        Their latent is ``r`` wide where a module's input is as wide as the hidden states, and in proportion elsewhere,
        as beside ``down_proj``, where ``rank_pattern`` can say it.

        Args:
            r: Width of the latent.
            settings: Further settings, which override those of the preset.
        """
        return cls.paper(r, **{"init": "kaiming_normal", **settings})

    @classmethod
    def aligned(cls, r: int, **settings: Any) -> Self:
        """Return the CeRA that the authors' code aligns with PEFT's LoRA (its variant "peft_aligned").

        ``s = alpha / r`` with ``alpha = r``, dropout on the input, and ``W_up`` starts as LoRA's A, so that it differs
        from a LoRA with ``lora_alpha = r`` by the activation only.

        Args:
            r: Width of the latent.
            settings: Further settings, which override those of the preset.
        """
        return cls.paper(r, **{"alpha": float(r), "dropout_on": "input", **settings})

    @property
    def default_placement(self) -> Placement | None:
        """Attention modules with granularity ``"module"``, else linear layers."""
        return "attention" if self.granularity == "module" else None

    def scaling_at(self, r: int) -> float:
        """Return the factor ``s`` on the update of a module whose latent has width ``r``."""
        return self.scaling if self.alpha is None else self.alpha / r

    def latent_map(self, r: int) -> nn.Module:
        """Return a new module that maps the pre-activation (..., r) to the latent, before dropout."""
        activation = super().latent_map(r)
        return RecurrentLatent(activation, r, self.recurrent_steps) if self.recurrent_steps else activation

    def draw(self, weight: Tensor) -> None:
        """Fill ``weight`` (out, in) at random, as ``init`` says; ``calibrated`` is scaled later."""
        if self.init == "kaiming_normal":
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
        else:
            super().draw(weight)

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
        self._check_variant()

    def _check_variant(self) -> None:
        """Check the settings in which the published CeRAs differ."""
        self._demand_one_of("init", get_args(Init))
        self._demand_one_of("dropout_on", get_args(DropoutOn))
        self._demand("calibration_std", is_positive(self.calibration_std), "a positive number")
        self._demand("alpha", self.alpha is None or is_positive(self.alpha), "a positive number or null")
        defaults = (LORA_LIKE_SCALING, 1.0)  # today's, and that in the files of adapters saved before
        if self.alpha is not None and self.scaling not in defaults:
            raise ValueError(
                f"{self._name}.alpha={self.alpha:g} and scaling={self.scaling:g} are both given: s is alpha / r or "
                "scaling, so leave one out."
            )
        steps = self.recurrent_steps
        whole = isinstance(steps, int) and not isinstance(steps, bool) and steps >= 0
        self._demand("recurrent_steps", whole, "0 or a positive integer")
        if steps and self.target_parameters:
            raise ValueError(f"{self._name}.recurrent_steps needs linear targets or modules, not target_parameters.")
        if self.init != "calibrated":
            return
        if self.target_parameters:
            raise ValueError(
                f"{self._name}.init='calibrated' needs linear targets or modules: each of the experts that "
                "target_parameters names sees tokens of its own."
            )
        if not self.init_weights:
            raise ValueError(
                f"{self._name}.init='calibrated' needs init_weights=True: W_down must be zero while W_up is scaled."
            )


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
        self._demand("init_std", is_positive(self.init_std), "a positive number")


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
