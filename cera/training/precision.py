"""The data types of the base and of the adapter under a trainer's ``precision``."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

AdapterDtype = Literal["float32"] | None
"""The adapter's data type; ``None`` is that of the base."""


def base_dtype(precision: str) -> torch.dtype:
    """Return the data type of the base's weights under a trainer's ``precision``."""
    return {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(precision, torch.float32)


def adapter_autocast(adapter_dtype: AdapterDtype, precision: str, device: str) -> AbstractContextManager:
    """Return the context in which the adapted model runs.

    With fp32 master weights beside a bf16 base, autocast computes the adapter's products in bf16 like the base's.

    Args:
        adapter_dtype: Data type of the adapter.
        precision: Precision of the trainer.
        device: Device type, such as ``"cuda"``.
    """
    if adapter_dtype == "float32" and precision == "bf16-true":
        return torch.autocast(device, torch.bfloat16)
    return nullcontext()
