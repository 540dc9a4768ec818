"""Numbers and curves of one spectrum (paper Section 3.1)."""

import torch
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
