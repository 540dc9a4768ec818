"""The weights that turn the latents of one layer into its update, read at one moment."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cera.spectral.exact import GatherWeight
from cera.spectral.measures import weight_spectrum


@dataclass(frozen=True)
class BranchWeights:
    """What turns the latents of one layer into its update, at one moment.

    Attributes:
        projection: (min(d, k), k) fp64 with the singular values and right singular vectors of ``s * W_down``.
        r: Width of the latent, which is k without the column of ones.
        product: Singular values of the weight of the update (min(d, r, in),); ``None`` for a non-linear adapter.
        shape: Outputs and inputs (d, in) of that weight.
    """

    projection: Tensor
    r: int
    product: Tensor | None
    shape: tuple[int, int] | None


def read_weights(
    down: Tensor,
    bias: Tensor | None,
    up: Tensor | None,
    diagonal: Tensor | None,
    scaling: float,
    gather: GatherWeight,
) -> BranchWeights:
    """Return what is needed of the weights of a branch; see ``cera.spectral.hooks.Branch`` for the arguments."""
    scaled = gather(down).detach().double() * scaling
    full = scaled
    if bias is not None:
        full = torch.cat([scaled, gather(bias).detach().double()[:, None] * scaling], dim=1)
    product, shape = None, None
    if up is not None:
        rows = gather(up).detach().double()
        product = weight_spectrum(scaled, rows if diagonal is None else rows * gather(diagonal).detach())
        shape = (scaled.shape[0], rows.shape[1])
    return BranchWeights(torch.linalg.qr(full, mode="r").R, scaled.shape[1], product, shape)
