"""CeRA and module-level adapters as PEFT tuners. Plain PyTorch and PEFT: nothing here knows of Lightning or of data."""

from cera.adapters.activations import ACTIVATIONS
from cera.adapters.register import register_cera

register_cera()

from cera.adapters.budget import bottleneck_for, trainable_parameters  # noqa: E402  # needs the PeftTypes
from cera.adapters.config import CeraConfig, HoulsbyConfig, ParallelConfig  # noqa: E402
from cera.adapters.experts import CeraExperts  # noqa: E402
from cera.adapters.layer import BranchLayer, CeraLayer  # noqa: E402
from cera.adapters.model import CeraModel, HoulsbyModel, ParallelModel  # noqa: E402
from cera.adapters.module_layer import ModuleLayer  # noqa: E402

__all__ = [
    "ACTIVATIONS",
    "BranchLayer",
    "CeraConfig",
    "CeraExperts",
    "CeraLayer",
    "CeraModel",
    "HoulsbyConfig",
    "HoulsbyModel",
    "ModuleLayer",
    "ParallelConfig",
    "ParallelModel",
    "bottleneck_for",
    "trainable_parameters",
]
