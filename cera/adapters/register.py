"""Makes CeRA and the adapters beside it known to PEFT, once, when ``cera`` is imported.

``register_peft_method`` takes only names that are in the ``PeftType`` enum, which has no public way to grow.
This is the one place that reaches into it; ``tests/test_register.py`` holds it against the installed PEFT.
"""

from peft.utils import PeftType, register_peft_method


def add_peft_type(name: str) -> PeftType:
    """Add ``name`` to the ``PeftType`` enum and return the member; a name that is there already is returned as is."""
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
    if "CERA" in PeftType.__members__:
        return
    for name in ("CERA", "HOULSBY", "PARALLEL"):
        add_peft_type(name)
    from cera.adapters.config import CeraConfig, HoulsbyConfig, ParallelConfig
    from cera.adapters.model import CeraModel, HoulsbyModel, ParallelModel

    for config, model in ((CeraConfig, CeraModel), (HoulsbyConfig, HoulsbyModel), (ParallelConfig, ParallelModel)):
        register_peft_method(name=config.method.lower(), config_cls=config, model_cls=model, prefix=model.prefix)
