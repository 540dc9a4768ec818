"""The affine map that comes closest to an activation on given data, and how much of the activation it leaves.

For the pre-activations ``z = W_up x`` of a layer's tokens, (tokens, r), and ``y = act(z)``, least squares fits

    y ~ C z + b

at three levels: ``scalar`` (C is a number times the identity), ``diagonal`` and ``full`` (C is any r x r matrix); b is
any vector of length r. The parts of the activation are the **gain** C z, the **offset** b, and the **curvature**
y - C z - b, which no affine map of that level reproduces.

Accuracy: the columns [1 z y] are streamed into their triangular factor (``cera.spectral.SpectrumAccumulator``), as
normal equations would square the condition number. Without its first row and column this factor is that of the centred
[z y], so that the offset drops out of the fit without a subtraction of large numbers. Directions in which z does not
vary get a gain of zero; what y has there is in the offset.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from cera.linearize import least_squares

Level = Literal["scalar", "diagonal", "full"]
"""The form of C."""
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class AffineMap:
    """The map ``z -> C z + b``.

    Attributes:
        matrix: C: () for a multiple of the identity, (r,) for a diagonal, (r, r) for any matrix; fp64.
        offset: b, (r,) fp64.
    """

    matrix: Tensor
    offset: Tensor

    def gain(self, z: Tensor) -> Tensor:
        """Return C z for each row of ``z`` (..., r)."""
        matrix = self.matrix.to(z.device, z.dtype)
        return z @ matrix.T if matrix.dim() == 2 else z * matrix

    def __call__(self, z: Tensor) -> Tensor:
        """Return C z + b for each row of ``z`` (..., r)."""
        return self.gain(z) + self.offset.to(z.device, z.dtype)

    @property
    def mean_gain(self) -> float:
        """The mean of C's diagonal."""
        diagonal = self.matrix.diagonal() if self.matrix.dim() == 2 else self.matrix
        return diagonal.mean().item()


@dataclass(frozen=True)
class Energies:
    """How an activation ``y`` divides into the parts of a map, over the tokens of some data.

    Attributes:
        r_squared: ``1 - ||y - C z - b||^2 / ||y - mean(y)||^2``; 1 for an activation that does not vary.
        gain: ``||C z||^2 / ||y||^2``; 0 if y is zero, as are the other two.
        offset: ``||b||^2 / ||y||^2``, with b at every token.
        curvature: ``||y - C z - b||^2 / ||y||^2``. On the data of the fit the curvature is orthogonal to gain and
            offset together, but these two are not orthogonal to each other, so that the three need not add up to 1.
    """

    r_squared: float
    gain: float
    offset: float
    curvature: float


@dataclass(frozen=True)
class LayerFit:
    """The maps that come closest to the activation of one layer.

    Attributes:
        name: Name of the layer in the base model.
        maps: The map of each level.
        calibration: Shares of the maps' parts on the data of the fit, by level.
        held_out: The same on other data; empty without any.
        tokens: Number of tokens of the fit.
    """

    name: str
    maps: dict[Level, AffineMap]
    calibration: dict[Level, Energies]
    held_out: dict[Level, Energies]
    tokens: int


class LatentFactor:
    """The triangular factor of [1 z y], from which fits and energies are computed.

    Args:
        factor: The data, (m, 1 + 2 r) fp64, or any matrix with the same Gram matrix, such as their triangular factor.
    """

    def __init__(self, factor: Tensor) -> None:
        columns = factor.shape[1]
        if len(factor) < columns:  # fewer tokens than columns: not triangular yet
            factor = torch.cat([factor, factor.new_zeros(columns - len(factor), columns)])
        r = (columns - 1) // 2
        self.one, self.z, self.y = torch.linalg.qr(factor, mode="r").R.split([1, r, r], dim=1)

    def fit(self, level: Level) -> AffineMap:
        """Return the least-squares map of a level."""
        z, y = self.z[1:], self.y[1:]  # centred
        mean_z, mean_y = (part[0] / self.one[0] for part in (self.z, self.y))
        if level == "full":
            [(up, down)] = least_squares(_without_rounding(z, self.z), y)
            matrix = down @ up
        else:
            products, squares = (z * y).sum(dim=0), _without_rounding(z, self.z).square().sum(dim=0)
            if level == "scalar":
                products, squares = products.sum(), squares.sum()
            matrix = torch.where(squares > 0, products / squares.clamp_min(torch.finfo(z.dtype).tiny), 0)
        gained = AffineMap(matrix, torch.zeros_like(mean_y)).gain(mean_z)
        return AffineMap(matrix, mean_y - gained)

    def energies(self, fitted: AffineMap) -> Energies:
        """Return the shares of a map's parts in these data, which need not be those of its fit."""
        gain = fitted.gain(self.z)
        offset = self.one * fitted.offset.to(self.one.device)
        residual = (self.y - gain - offset).square().sum()
        energy, spread = self.y.square().sum(), _without_rounding(self.y[1:], self.y).square().sum()

        def share(part: Tensor) -> float:
            return 0.0 if energy == 0 else (part / energy).item()

        return Energies(
            r_squared=1.0 if spread == 0 else 1 - (residual / spread).item(),
            gain=share(gain.square().sum()),
            offset=share(offset.square().sum()),
            curvature=share(residual),
        )


def _without_rounding(centred: Tensor, columns: Tensor) -> Tensor:
    """Return the centred columns with zeros for those that are constant up to rounding.

    Args:
        centred: (m - 1, r).
        columns: The same columns before centring, (m, r).
    """
    cutoff = max(columns.shape) * torch.finfo(columns.dtype).eps * columns.norm(dim=0)
    return torch.where(centred.norm(dim=0) > cutoff, centred, 0)
