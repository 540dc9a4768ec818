"""CeRA and module-level adapters as PEFT tuners. Plain PyTorch and PEFT: nothing here knows of Lightning or of data.

``layer.BranchLayer.update`` has the formula, ``config`` the settings, ``branch_model`` and ``model`` the tuners.
"""

from cera.adapters.activations import ACTIVATIONS
from cera.adapters.branch_config import BranchConfig
from cera.adapters.branch_model import BranchModel, with_current_prefix
from cera.adapters.budget import bottleneck_for, trainable_parameters
from cera.adapters.calibrate import calibrate
from cera.adapters.config import CeraConfig, HoulsbyConfig, ParallelConfig
from cera.adapters.experts import CeraExperts
from cera.adapters.full_weight import FullWeightConfig, FullWeightModel
from cera.adapters.layer import BranchLayer, CeraLayer
from cera.adapters.model import CeraModel, HoulsbyModel, ParallelModel
from cera.adapters.module_layer import ModuleLayer
from cera.adapters.register import register_adapter, register_cera

register_cera()

__all__ = [
    "ACTIVATIONS",
    "BranchConfig",
    "BranchLayer",
    "BranchModel",
    "CeraConfig",
    "CeraExperts",
    "CeraLayer",
    "CeraModel",
    "FullWeightConfig",
    "FullWeightModel",
    "HoulsbyConfig",
    "HoulsbyModel",
    "ModuleLayer",
    "ParallelConfig",
    "ParallelModel",
    "bottleneck_for",
    "calibrate",
    "register_adapter",
    "trainable_parameters",
    "with_current_prefix",
]
