"""Registers tuners as PEFT methods: those of this package when ``cera`` is imported, and those of your own.

``peft.utils.register_peft_method`` accepts only names in the ``PeftType`` enum, which has no public way to grow.
``add_peft_type`` is the one place that reaches into it; ``tests/adapters/test_register.py`` holds it against the
installed PEFT.
"""

import difflib
import functools
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

Config = TypeVar("Config", bound=PeftConfig)

SCALE = "scaling, the factor s on the update: LoRA's is lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora"
COUNTERPARTS = {
    "lora_alpha": SCALE,
    "use_rslora": SCALE,
    "alpha_pattern": "scaling or alpha, which are the same in all layers",
    "lora_dropout": "dropout, which drops units of the latent",
    "init_lora_weights": "init_weights",
    "rank": "r",
    "bias": "no such argument: the biases of the base stay frozen",
    "lora_bias": "no such argument: whether the projections have biases is part of the method",
    "fan_in_fan_out": "no such argument: layers that store their weight transposed are recognized",
}
"""Arguments of ``LoraConfig`` -> what the configurations of this package have instead."""


def register_adapter(model: type[BaseTuner], method: str | None = None) -> Callable[[type[Config]], type[Config]]:
    """Return a decorator that registers a configuration class and its tuner as a PEFT method.

    The adapter then trains by class path, is measured, saved and loaded like any other. A complete file, for a branch
    with a cubic activation::

        # cubic.py
        from dataclasses import dataclass
        from typing import ClassVar

        import cera
        from cera.adapters import BranchConfig, BranchModel

        class CubicModel(BranchModel):
            prefix = "cubic_"

        @cera.register_adapter(CubicModel)
        @dataclass
        class CubicConfig(BranchConfig):
            prefix: ClassVar[str] = "cubic_"
            ...

    Commands find it in a run directory by the class path in ``config.yaml``. Before a bare adapter directory is
    loaded, its module must be imported.

    Args:
        model: The tuner. Its ``prefix`` begins the names of the adapter's weights, and no other method has it.
        method: Name of the method in ``adapter_config.json``, in upper case; by default the name of the configuration
            class without ``Config``.

    Raises:
        KeyError: Another class has registered the method or the prefix.
        ValueError: The method's name is not in upper case, or ``model`` has no prefix.
    """

    def register(config: type[Config]) -> type[Config]:
        name = method or getattr(config, "method", None) or config.__name__.removesuffix("Config").upper()
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*[A-Z0-9]", name):
            raise ValueError(f"register_adapter: method must be in upper case, such as 'CUBIC', got {name!r}.")
        peft_type = add_peft_type(name)
        if PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type) is config:
            return config
        register_peft_method(name=name.lower(), config_cls=config, model_cls=model, prefix=model.prefix)
        config.method = name  # type: ignore[attr-defined]
        _set_peft_type(config, peft_type)
        _explain_unknown_arguments(config)
        return config

    return register


def add_peft_type(name: str) -> PeftType:
    """Add ``name`` to the ``PeftType`` enum and return the member; a name that exists is returned as it is."""
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


def register_cera() -> None:
    """Register the tuners of this package as PEFT methods. Calling it again changes nothing."""
    from cera.adapters.config import CeraConfig, HoulsbyConfig, ParallelConfig
    from cera.adapters.full_weight import FullWeightConfig, FullWeightModel
    from cera.adapters.model import CeraModel, HoulsbyModel, ParallelModel

    register_adapter(CeraModel)(CeraConfig)
    register_adapter(HoulsbyModel)(HoulsbyConfig)
    register_adapter(ParallelModel)(ParallelConfig)
    register_adapter(FullWeightModel)(FullWeightConfig)


def _explain_unknown_arguments(config: type[Any]) -> None:
    """Let ``config`` say what it has in place of an argument that it does not know, such as one of ``LoraConfig``."""
    init, known = config.__init__, [field.name for field in fields(config)]

    @functools.wraps(init)  # keeps the signature, which the command line reads
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name in known:
                continue
            near = difflib.get_close_matches(name, known)
            use = COUNTERPARTS.get(name) or " or ".join(near) or f"one of {', '.join(known)}"
            raise TypeError(f"{config.__name__} got an unexpected keyword argument {name!r}. Use {use}.")
        init(self, *args, **kwargs)

    config.__init__ = __init__


def _set_peft_type(config: type[Any], peft_type: PeftType) -> None:
    """Let instances of ``config`` have ``peft_type``, as PEFT's own configurations do in ``__post_init__``."""
    after_init = config.__post_init__

    def __post_init__(self: Any) -> None:
        self.peft_type = peft_type
        after_init(self)
        self.peft_type = peft_type

    config.__post_init__ = __post_init__
