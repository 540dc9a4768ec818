"""Accumulates the spectrum of a stream of activations without storing them (see ``cera.spectral``)."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
        self.factor: Tensor | None = None

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
        if self.factor is not None and rows.shape[-1] != self.factor.shape[-1]:
            raise ValueError(f"{self.name}: {rows.shape[-1]} features after {self.factor.shape[-1]}.")
        if not torch.isfinite(rows).all():
            raise NonFiniteError(f"{self.name}: the activations hold NaN or infinite values.")
        self._add(rows.double(), rows.shape[0])

    def _add(self, rows: Tensor, count: int) -> None:
        stacked = rows if self.factor is None else torch.cat([self.factor.to(rows.device), rows])
        self.factor = torch.linalg.qr(stacked, mode="r").R if stacked.shape[0] > stacked.shape[1] else stacked
        self.rows += count

    def merge(self, other: "SpectrumAccumulator") -> None:
        """Add the rows that ``other`` has accumulated."""
        if other.factor is not None:
            self._add(other.factor, other.rows)

    def all_reduce(self) -> None:
        """Merge the accumulators of all ranks of the default process group, if any. Every rank must call this."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, self.state_dict())
        self.rows, self.factor = 0, None
        for state in states:
            other = SpectrumAccumulator()
            other.load_state_dict(state)
            self.merge(other)

    def singular_values(self, down: Tensor | None = None, scaling: float = 1.0) -> Tensor:
        """Return the singular values of the stream (``latent``), or of its image under ``down`` (``update``).

        Args:
            down: ``W_down``, (d, k); ``None`` for the stream itself.
            scaling: Scaling factor ``s`` of the adapter.

        Returns:
            (min(rows, k, d),) fp64, descending; empty before the first row.
        """
        if self.factor is None:
            return torch.zeros(0, dtype=torch.float64)
        matrix = self.factor
        if down is not None:
            right = torch.linalg.qr(down.detach().double().to(matrix.device), mode="r").R
            matrix = matrix @ right.T
        return torch.linalg.svdvals(matrix) * abs(scaling)

    def state_dict(self) -> dict[str, Any]:
        """Return the row count and the triangular factor."""
        return {"rows": self.rows, "factor": None if self.factor is None else self.factor.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.rows, self.factor = state["rows"], state["factor"]
