"""FlashAttention in packed rows: it must be told where documents begin.

transformers' masks for other kernels (SDPA, eager, FlexAttention) follow from ``position_ids``, which begin anew with
each document. FlashAttention takes no mask, and transformers looks for documents in ``position_ids`` only if there is
a single row (``_is_packed_sequence``): with more rows each document would attend to those before it in its row.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def keep_documents_apart(model: nn.Module) -> None:
    """Let a model whose attention is a FlashAttention kernel, of a package or of the hub, keep packed documents apart.

    Models with other kernels are left as they are. What generates with a cache is not packed, and not changed.
    """
    config: Any = model.config
    if "flash" in (config.get_text_config()._attn_implementation or ""):
        model.register_forward_pre_hook(add_document_bounds, with_kwargs=True)


def add_document_bounds(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Add ``document_bounds`` to the arguments of a forward pass that has ``position_ids`` and no cache."""
    positions = kwargs.get("position_ids")
    if positions is None or kwargs.get("past_key_values") is not None:
        return args, kwargs
    return args, {**document_bounds(positions), **kwargs}


def document_bounds(position_ids: Tensor) -> dict[str, Any]:
    """Return the arguments of FlashAttention for variable lengths, by which it keeps documents apart.

    Args:
        position_ids: Positions (rows, length), which begin with 0 in each document and in each row.

    Returns:
        ``cu_seq_lens_q`` and ``cu_seq_lens_k``, the first positions of all documents and the end of the last one as
        int32 indices into the flattened rows; ``max_length_q`` and ``max_length_k``, the length of a row as the bound
        of their lengths, which is known without waiting for the device.
    """
    flat = position_ids.flatten()
    bounds = F.pad(torch.nonzero(flat == 0).flatten(), (0, 1), value=len(flat)).to(torch.int32)
    length = position_ids.shape[1]
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": length, "max_length_k": length}
