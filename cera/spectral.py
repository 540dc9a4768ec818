"""The paper's spectral measures (Sections 3.1 and 4.1): effective rank, AUC-90, and how to get a spectrum cheaply.

The matrix ``H`` of adapter activations has a row per token. The paper does not say which activations; here they are

- ``update``: the adapter's output, tokens x d. The default.
- ``latent``: what ``W_down`` sees, tokens x r.
- ``weight``: for linear adapters, the singular values of ``s B A`` itself, without data.

Nothing here ever holds ``H``. A stream of activations ``Z`` (tokens x k) is reduced to the k x k triangular factor
``R`` of its QR decomposition, ``Z = Q R``, which has the same singular values. ``R`` is the square root of the Gram
matrix (``Z^T Z = R^T R``) and as cheap to keep and to add up, but it does not square the spectrum: the eigenvalues
of a Gram matrix in fp64 lose singular values below 1e-8 of the largest, and are off by more than 1e-4 at 1e-6.
The update is ``H = s Z W_down^T``; its singular values are those of the small ``s R W_down^T``.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def effective_rank(singular_values: Tensor) -> float:
    """``exp(-sum p_i ln p_i)`` with ``p_i = sigma_i / sum sigma`` (paper Eq. 3; Roy & Vetterli 2007).

    Args:
        singular_values: (k,), not negative, in any order.

    Returns:
        Between 1 and k; 0 for a zero matrix, which has no direction at all.
    """
    sigma = singular_values.double()
    total = sigma.sum()
    if total == 0:
        return 0.0
    return torch.special.entr(sigma / total).sum().exp().item()


def cumulative_energy(singular_values: Tensor) -> Tensor:
    """Share of the energy ``sum sigma_i^2`` that the leading components hold (paper Fig. 1 and 4, right).

    Args:
        singular_values: (k,), in any order.

    Returns:
        (k,) fp64, rising to 1; zeros for a zero matrix.
    """
    sigma = singular_values.double().sort(descending=True).values
    energy = (sigma / sigma.max().clamp_min(torch.finfo(torch.float64).tiny)).square() if len(sigma) else sigma
    return energy.cumsum(0) / energy.sum().clamp_min(torch.finfo(torch.float64).tiny)


def energy_rank(singular_values: Tensor, fraction: float = 0.9) -> int:
    """AUC-90: how many leading components hold ``fraction`` of the energy (paper Section 4.1).

    Args:
        singular_values: (k,), in any order.
        fraction: In (0, 1].

    Returns:
        Between 1 and k; 0 for a zero matrix.

    Raises:
        ValueError: ``fraction`` is out of its range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}.")
    curve = cumulative_energy(singular_values)
    if not len(curve) or curve[-1] == 0:
        return 0
    # the curve's own rounding must not ask for one more component than the fraction does
    return int((curve < fraction - 1e-12).sum().item()) + 1


def weight_spectrum(down: Tensor, up: Tensor, scaling: float = 1.0) -> Tensor:
    """Singular values of ``scaling * down @ up`` without forming the product.

    Args:
        down: (d, r).
        up: (r, k).
        scaling: The adapter's factor.

    Returns:
        (min(d, r, k),) fp64, descending.
    """
    left = torch.linalg.qr(down.detach().double(), mode="r").R
    right = torch.linalg.qr(up.detach().double().T, mode="r").R
    return torch.linalg.svdvals(left @ right.T) * abs(scaling)


class SpectrumAccumulator:
    """The spectrum of a stream of activations, in memory O(k^2) for k features.

    Args:
        name: Of the layer, for error messages.
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
            ValueError: The shapes do not fit, or a value is NaN or infinite.
        """
        rows = activations.detach()[mask] if mask is not None else activations.detach().flatten(0, -2)
        if self.factor is not None and rows.shape[-1] != self.factor.shape[-1]:
            raise ValueError(f"{self.name}: {rows.shape[-1]} features after {self.factor.shape[-1]}.")
        if not torch.isfinite(rows).all():
            raise ValueError(f"{self.name}: the activations hold NaN or infinite values.")
        self._add(rows.double(), rows.shape[0])

    def _add(self, rows: Tensor, count: int) -> None:
        stacked = rows if self.factor is None else torch.cat([self.factor.to(rows.device), rows])
        self.factor = torch.linalg.qr(stacked, mode="r").R if stacked.shape[0] > stacked.shape[1] else stacked
        self.rows += count

    def merge(self, other: "SpectrumAccumulator") -> None:
        """Add all that ``other`` has seen."""
        if other.factor is not None:
            self._add(other.factor, other.rows)

    def all_reduce(self) -> None:
        """Add up over the ranks of the default process group, if there is one. Every rank must call this."""
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
        """Of the stream (``latent``), or of what ``down`` makes of it (``update``).

        Args:
            down: ``W_down``, (d, k); ``None`` for the stream itself.
            scaling: The adapter's factor ``s``.

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
        """What has been seen, as plain data and one tensor."""
        return {"rows": self.rows, "factor": None if self.factor is None else self.factor.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.rows, self.factor = state["rows"], state["factor"]
