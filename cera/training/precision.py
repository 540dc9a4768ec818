"""The data types of the base and of the adapter under a trainer's ``precision``."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn

AdapterDtype = Literal["float32"] | None
"""The adapter's data type; ``None`` is that of the base."""


def base_dtype(precision: str) -> torch.dtype:
    """Return the data type of the base's weights under a trainer's ``precision``."""
    return {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(precision, torch.float32)


def adapter_autocast(precision: str, device: str) -> AbstractContextManager:
    """Return the context in which a model with an fp32 adapter runs.

    Beside a bf16 base, autocast computes the adapter's products in bf16 like the base's; the master weights stay fp32.

    Args:
        precision: Precision of the trainer.
        device: Device type, such as ``"cuda"``.
    """
    return torch.autocast(device, torch.bfloat16) if precision == "bf16-true" else nullcontext()


@contextmanager
def kept_in_fp32(module: nn.Module) -> Iterator[None]:
    """Keep the trained parameters in fp32 while ``module`` is moved and cast.

    They are restored from the original weights, which a cast to bf16 would have rounded.
    """
    weights = {name: p.data for name, p in module.named_parameters() if p.requires_grad}
    yield
    for name, parameter in module.named_parameters():
        if name in weights:
            parameter.data = weights[name].to(parameter.device, torch.float32)
