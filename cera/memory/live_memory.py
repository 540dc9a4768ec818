"""Tracks the peak memory of a computation; with fake tensors, so that nothing is allocated.

with FakeTensorMode(), LiveMemory(parameters) as live:
    model(ids).loss.backward()
live.peak  # bytes
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

BOOLEAN_INDEXING = torch.ops.aten.index.Tensor
BOOLEAN_ASSIGNMENT = (torch.ops.aten.index_put.default, torch.ops.aten._index_put_impl_.default)


class LiveMemory(TorchDispatchMode):
    """Counts the storages of all tensors that operations return, each until it is freed.

    Memory inside an operation, such as a kernel's workspace, is not seen.

    Args:
        known: Tensors that exist already and are not counted.

    Attributes:
        bytes: Bytes in live storages.
        peak: Maximum of ``bytes``.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]  # keeps them alive, so no address is reused
        self._seen = {storage._cdata for storage in self._known}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``operation`` and count the tensors that it returns."""
        return tree_map_only(Tensor, self._count, operation(*args, **(kwargs or {})))

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._free, key, size)
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.bytes -= size


class SelectedShare(TorchDispatchMode):
    """Assumes that each boolean mask selects a fixed share of its elements, as fake tensors have no content.

    Args:
        share: Selected share, in (0, 1].
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``operation``, or return a tensor of the assumed shape if its index is a mask."""
        if operation is BOOLEAN_INDEXING and _is_mask(args[1][0]):
            tensor, mask = args[0], args[1][0]
            return tensor.new_empty((round(self.share * mask.numel()), *tensor.shape[mask.ndim :]))
        if operation in BOOLEAN_ASSIGNMENT and _is_mask(args[1][0]):
            return args[0] if operation is BOOLEAN_ASSIGNMENT[1] else torch.empty_like(args[0])
        return operation(*args, **(kwargs or {}))


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


def materialize(model: nn.Module, frozen: torch.dtype, trained: torch.dtype) -> None:
    """Replace the meta tensors of a model by CPU tensors, in place; tied tensors stay tied.

    Under ``FakeTensorMode`` these are fake tensors, which take no memory.

    Args:
        model: With or without adapters.
        frozen: Data type of floating-point buffers, and of floating-point parameters without gradient.
        trained: Data type of floating-point parameters with gradient.
    """
    replacements: dict[Tensor, Tensor] = {}

    def empty_like(tensor: Tensor) -> Tensor:
        dtype = (trained if tensor.requires_grad else frozen) if tensor.is_floating_point() else tensor.dtype
        new = torch.empty(tensor.shape, dtype=dtype, device="cpu")
        return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if tensor not in replacements:
                        replacements[tensor] = empty_like(tensor)
                    tensors[name] = replacements[tensor]  # type: ignore[assignment]
