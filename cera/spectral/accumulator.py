"""Accumulates the spectrum of a stream of activations without storing them (see ``cera.spectral``).

What is kept of the activations Z (tokens x k) is the triangular factor of ``[1 Z]``, with a column of ones in front:

    [1 Z] = Q R,   R = | sqrt(n)  sqrt(n) mean |   (up to signs)
                       | 0        C            |

The columns of Q after the first are orthogonal to the ones. So the singular values of ``C`` are those of Z minus its
mean over the tokens, and those of R without its first column are those of Z itself: one pass gives both. A mean that is
subtracted afterwards from moments of Z would cancel digits where it is large.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

ROUNDING = 1e-12
"""What is left of a matrix in fp64 after a subtraction, below this share of its norm, is rounding."""


class NonFiniteError(ValueError):
    """Activations contain NaN or infinite values, for which no spectrum is defined."""


class SpectrumAccumulator:
    """Computes the singular values of a stream of activations, with O(k^2) memory for k features.

    Args:
        name: Name of the layer, for error messages.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.rows = 0
        self._extended: Tensor | None = None  # the triangular factor of [1 Z], (min(rows, k + 1), k + 1)

    @property
    def factor(self) -> Tensor | None:
        """The triangular factor of Z, (min(rows, k), k) fp64, computed when asked for; ``None`` without rows."""
        return None if self._extended is None else torch.linalg.qr(self._extended[:, 1:], mode="r").R

    def update(self, activations: Tensor, mask: Tensor | None = None) -> None:
        """Add the rows of ``activations``.

        Args:
            activations: (..., k), any floating dtype.
            mask: (...) bool; False leaves a row out (padding).

        Raises:
            ValueError: The shapes do not fit.
            NonFiniteError: A value is NaN or infinite.
        """
        rows = activations.detach()[mask] if mask is not None else activations.detach().flatten(0, -2)
        if self._extended is not None and rows.shape[-1] != self._extended.shape[-1] - 1:
            raise ValueError(f"{self.name}: {rows.shape[-1]} features after {self._extended.shape[-1] - 1}.")
        if not torch.isfinite(rows).all():
            raise NonFiniteError(f"{self.name}: the activations hold NaN or infinite values.")
        self._add(F.pad(rows.double(), (1, 0), value=1.0), rows.shape[0])

    def _add(self, extended: Tensor, count: int) -> None:
        if count:
            stacked = extended if self._extended is None else torch.cat([self._extended.to(extended.device), extended])
            self._extended = torch.linalg.qr(stacked, mode="r").R
            self.rows += count

    def merge(self, other: "SpectrumAccumulator") -> None:
        """Add the rows that ``other`` has accumulated."""
        if other._extended is not None:
            self._add(other._extended, other.rows)

    def all_reduce(self) -> None:
        """Merge the accumulators of all ranks of the default process group, if any. Every rank must call this."""
        states = gather_objects(self.state_dict())
        if len(states) == 1:
            return
        self.rows, self._extended = 0, None
        for state in states:
            other = SpectrumAccumulator()
            other.load_state_dict(state)
            self.merge(other)

    def singular_values(self, down: Tensor | None = None, scaling: float = 1.0, centre: bool = False) -> Tensor:
        """Return the singular values of the stream (``latent``), or of its image under ``down`` (``update``).

        Args:
            down: ``W_down``, (d, k); ``None`` for the stream itself.
            scaling: Scaling factor ``s`` of the adapter.
            centre: Whether the mean over the rows is subtracted from each column.

        Returns:
            (min(rows, k, d),) fp64, descending; empty before the first row. Centred, one row less counts.
        """
        if self._extended is None:
            return torch.zeros(0, dtype=torch.float64)
        matrix = self._extended[:, 1:]
        if down is not None:
            right = torch.linalg.qr(down.detach().double().to(matrix.device), mode="r").R
            matrix = matrix @ right.T
        whole = matrix
        if centre:
            matrix = matrix[1:] if self.rows > 1 else torch.zeros_like(matrix)
        if torch.linalg.vector_norm(matrix) <= ROUNDING * torch.linalg.vector_norm(whole):
            matrix = torch.zeros_like(matrix)
        return torch.linalg.svdvals(matrix) * abs(scaling)

    def state_dict(self) -> dict[str, Any]:
        """Return the row count and the triangular factor of ``[1 Z]``."""
        return {"rows": self.rows, "extended": None if self._extended is None else self._extended.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.rows, self._extended = state["rows"], state["extended"]


def gather_objects(value: Any) -> list[Any]:
    """Return ``value`` of each rank of the default process group, in order. Every rank must call this."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
