"""CeRA: Capacity-enhanced Rank Adaptation, and a framework to train, inspect and compare adapters.

Importing this package makes CeRA a PEFT method like any other (``peft.get_peft_model(model, cera.CeraConfig())``).
"""

import logging
from contextlib import nullcontext

from cera.runs.signals import exit_at_interrupt, is_command

_bitsandbytes = logging.getLogger("bitsandbytes")
_level = _bitsandbytes.level
_bitsandbytes.setLevel(logging.ERROR)  # it logs missing optional CPU kernels when PEFT imports it

with exit_at_interrupt() if is_command() else nullcontext():  # these imports take seconds
    from cera.adapters import (
        CeraConfig,
        CeraLayer,
        CeraModel,
        FullWeightConfig,
        FullWeightModel,
        HoulsbyConfig,
        HoulsbyModel,
        ModuleLayer,
        ParallelConfig,
        ParallelModel,
        bottleneck_for,
        calibrate,
        register_adapter,
    )
    from cera.linearize import Linearization, linearize
    from cera.runs.lora_as_cera import load_lora_as_cera

_bitsandbytes.setLevel(_level)

__version__ = "0.1.0"
__all__ = [
    "CeraConfig",
    "CeraLayer",
    "CeraModel",
    "FullWeightConfig",
    "FullWeightModel",
    "HoulsbyConfig",
    "HoulsbyModel",
    "Linearization",
    "ModuleLayer",
    "ParallelConfig",
    "ParallelModel",
    "__version__",
    "bottleneck_for",
    "calibrate",
    "linearize",
    "load_lora_as_cera",
    "register_adapter",
]
