"""CeRA as a PEFT tuner. Plain PyTorch and PEFT: nothing here knows of Lightning or of data."""

from cera.adapters.activations import ACTIVATIONS
from cera.adapters.register import register_cera

register_cera()

from cera.adapters.config import CeraConfig  # noqa: E402  # needs the PeftType that register_cera adds
from cera.adapters.layer import CeraLayer  # noqa: E402
from cera.adapters.model import CeraModel  # noqa: E402

__all__ = ["ACTIVATIONS", "CeraConfig", "CeraLayer", "CeraModel"]
