"""How much memory a computation's tensors take at a time; on torch's fake tensors, without taking any."""

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
    """While it lasts, adds up the storages of the tensors that operations return, each until it is let go.

    What an operation takes for itself alone, such as a kernel's workspace, is not seen.

    Args:
        known: Tensors that are there already, and not counted.

    Attributes:
        bytes: In storages that are alive.
        peak: The most that these were.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]  # held, so that no address comes twice
        self._seen = {storage._cdata for storage in self._known}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``operation``, and count what it returns."""
        return tree_map_only(Tensor, self._count, operation(*args, **(kwargs or {})))

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._let_go, key, size)
        return tensor

    def _let_go(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.bytes -= size


class SelectedShare(TorchDispatchMode):
    """Lets boolean masks select a share of what they are over, where fake tensors cannot know how much they do.

    Args:
        share: In (0, 1].
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``operation``, or make what it would return with a mask for an index."""
        if operation is BOOLEAN_INDEXING and _is_mask(args[1][0]):
            tensor, mask = args[0], args[1][0]
            return tensor.new_empty((round(self.share * mask.numel()), *tensor.shape[mask.ndim :]))
        if operation in BOOLEAN_ASSIGNMENT and _is_mask(args[1][0]):
            return args[0] if operation is BOOLEAN_ASSIGNMENT[1] else torch.empty_like(args[0])
        return operation(*args, **(kwargs or {}))


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


def materialize(model: nn.Module, frozen: torch.dtype, trained: torch.dtype) -> None:
    """Give a model on the meta device tensors on the CPU, in place; tied ones stay tied.

    Under ``FakeTensorMode`` they are fake ones, that take no memory.

    Args:
        model: With or without adapters.
        frozen: Data type of floating-point parameters without gradient, and of buffers.
        trained: Of those with one.
    """
    made: dict[Tensor, Tensor] = {}

    def like(tensor: Tensor) -> Tensor:
        dtype = (trained if tensor.requires_grad else frozen) if tensor.is_floating_point() else tensor.dtype
        new = torch.empty(tensor.shape, dtype=dtype, device="cpu")
        return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if tensor not in made:
                        made[tensor] = like(tensor)
                    tensors[name] = made[tensor]  # type: ignore[assignment]
