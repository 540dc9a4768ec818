"""Measures of one spectrum (paper Section 3.1), and the registry that every output of them reads.

A registered measure appears in TensorBoard (scalars and charts), in ``metrics.csv``, in the table of ``cera spectra``
and in its CSV file. A new one is one entry, in any module that is imported before:

    @register_measure("numerical_rank", heading="num. rank", chart="Singular values above 1e-6 of the largest")
    def numerical_rank(singular_values: Tensor) -> int:
        return int((singular_values > 1e-6 * singular_values.max()).sum())

The paper's own are here; ``cera.spectral.further_measures`` has others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

MeasureFunction = TypeVar("MeasureFunction", bound=Callable[..., float])
"""Maps singular values (k,), and the layer's rank and shape if the measure needs them, to a number."""


@dataclass(frozen=True)
class Measure:
    """A number that describes one spectrum.

    Attributes:
        name: Name in TensorBoard's tags and in the columns of CSV files.
        function: Called with the singular values (k,), and with the layer's rank if ``needs_rank``.
        heading: Column heading in tables.
        chart: Title of its chart in TensorBoard.
        format: Format specification of its values in tables.
        needs_rank: Whether ``function`` takes the rank; layers without a rank are then left out.
        needs_shape: Whether ``function`` takes the shape (d, in) of a weight; other matrices are left out.
        detailed: Whether it has charts, values for each module and layer in the logs, and a column in comparisons. The
            others are logged as one mean over all layers; ``cera spectra`` shows all.
    """

    name: str
    function: Callable[..., float]
    heading: str
    chart: str
    format: str = ".2f"
    needs_rank: bool = False
    needs_shape: bool = False
    detailed: bool = True

    def __call__(
        self, singular_values: Tensor, rank: int | None = None, shape: tuple[int, int] | None = None
    ) -> float | None:
        """Return the measure of a spectrum, or ``None`` if it needs a rank or a shape and there is none."""
        needed = [value for value, needs in ((rank, self.needs_rank), (shape, self.needs_shape)) if needs]
        return None if None in needed else float(self.function(singular_values, *needed))


MEASURES: dict[str, Measure] = {}
"""All registered measures by name, in the order of columns and charts."""


def register_measure(
    name: str,
    *,
    heading: str,
    chart: str,
    format: str = ".2f",
    needs_rank: bool = False,
    needs_shape: bool = False,
    detailed: bool = True,
) -> Callable[[MeasureFunction], MeasureFunction]:
    """Register the decorated function as a measure; see ``Measure`` for the arguments.

    Raises:
        ValueError: ``name`` is registered already with another function, or is not a name for a tag.
    """
    if not name.isidentifier():
        raise ValueError(f"a measure's name must consist of letters, digits and _, got {name!r}.")

    def register(function: MeasureFunction) -> MeasureFunction:
        registered = MEASURES.get(name)
        if registered is not None and _origin(registered.function) != _origin(function):
            raise ValueError(f"a measure named {name!r} is registered already.")
        MEASURES[name] = Measure(name, function, heading, chart, format, needs_rank, needs_shape, detailed)
        return function

    return register


def _origin(function: Callable[..., float]) -> tuple[str, str]:
    """Identify a function across reloads of its module, which may register it again."""
    return function.__module__, function.__qualname__


@register_measure("effective_rank", heading="ER", chart="Effective rank, mean over layers (Eq. 3)")
def effective_rank(singular_values: Tensor) -> float:
    """Return ``exp(-sum p_i ln p_i)`` with ``p_i = sigma_i / sum sigma`` (paper Eq. 3; Roy & Vetterli 2007).

    Args:
        singular_values: (k,), not negative, in any order.

    Returns:
        A number between 1 and k; 0 for a zero matrix, which has no direction at all.
    """
    sigma = singular_values.double()
    total = sigma.sum()
    if total == 0:
        return 0.0
    return torch.special.entr(sigma / total).sum().exp().item()


@register_measure("effective_rank_over_r", heading="ER / r", chart="Effective rank / r", format=".3f", needs_rank=True)
def effective_rank_over_r(singular_values: Tensor, rank: int) -> float:
    """Return the effective rank as a share of the adapter's rank r, or of the matrix's own where that is smaller.

    Args:
        singular_values: (k,); k is less than r if r exceeds the width of the layer or the number of tokens.
        rank: r.
    """
    return effective_rank(singular_values) / max(1, min(rank, len(singular_values)))


def relative(singular_values: Tensor) -> Tensor:
    """Return the singular values (k,) over the largest, in fp64, so that no power of them overflows; zeros stay."""
    sigma = singular_values.double()
    return sigma / sigma.max().clamp_min(torch.finfo(torch.float64).tiny) if len(sigma) else sigma


def cumulative_energy(singular_values: Tensor) -> Tensor:
    """Return the share of the energy ``sum sigma_i^2`` in the leading components (paper Fig. 1 and 4, right).

    Args:
        singular_values: (k,), in any order.

    Returns:
        (k,) fp64, rising to 1; zeros for a zero matrix.
    """
    energy = relative(singular_values).sort(descending=True).values.square()
    return energy.cumsum(0) / energy.sum().clamp_min(torch.finfo(torch.float64).tiny)


@register_measure("auc_90", heading="AUC-90", chart="AUC-90: components that hold 90% of the energy")
def energy_rank(singular_values: Tensor, fraction: float = 0.9) -> int:
    """Return the number of leading components that hold ``fraction`` of the energy: AUC-90 (paper Section 4.1).

    Args:
        singular_values: (k,), in any order.
        fraction: In (0, 1].

    Returns:
        A number between 1 and k; 0 for a zero matrix.

    Raises:
        ValueError: ``fraction`` is out of its range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}.")
    return leading(cumulative_energy(singular_values), fraction)


def leading(curve: Tensor, fraction: float) -> int:
    """Return how many leading components a cumulative curve (k,) needs to reach ``fraction``; 0 for a zero matrix."""
    if not len(curve) or curve[-1] == 0:
        return 0
    # the tolerance keeps the rounding of the cumulative sum from adding a component
    return int((curve < fraction - 1e-12).sum().item()) + 1


def weight_spectrum(down: Tensor, up: Tensor, scaling: float = 1.0) -> Tensor:
    """Return the singular values of ``scaling * down @ up`` without forming the product.

    Args:
        down: (d, r).
        up: (r, k).
        scaling: The adapter's factor ``s``.

    Returns:
        (min(d, r, k),) fp64, descending.
    """
    left = torch.linalg.qr(down.detach().double(), mode="r").R
    right = torch.linalg.qr(up.detach().double().T, mode="r").R
    return torch.linalg.svdvals(left @ right.T) * abs(scaling)
