"""Temporarily changes the input of a model's output head."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def head_reads(head: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let ``head`` read ``change(hidden)`` in place of the hidden states (batch, length, hidden) that it is given."""
    handle = head.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()
