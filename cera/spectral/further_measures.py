"""Further measures of a spectrum, beside the paper's: other ways to count directions, the size, and random matrices.

They are logged as one mean over all layers, and in the tables of ``cera spectra``.
"""

import math

from torch import Tensor

from cera.spectral.measures import effective_rank, leading, register_measure, relative


@register_measure("stable_rank", heading="stable", chart="Stable rank", detailed=False)
def stable_rank(singular_values: Tensor) -> float:
    """Return ``sum sigma_i^2 / sigma_1^2``: between 1 and k; 0 for a zero matrix.

    Args:
        singular_values: (k,), in any order.
    """
    return relative(singular_values).square().sum().item()


@register_measure("participation_ratio", heading="PR", chart="Participation ratio", detailed=False)
def participation_ratio(singular_values: Tensor) -> float:
    """Return ``(sum sigma_i^2)^2 / sum sigma_i^4``: between 1 and k; 0 for a zero matrix.

    Args:
        singular_values: (k,), in any order.
    """
    energy = relative(singular_values).square()
    total = energy.sum().item()
    return total**2 / energy.square().sum().item() if total else 0.0


@register_measure("effective_rank_of_energy", heading="ER s^2", chart="Effective rank of sigma^2", detailed=False)
def effective_rank_of_energy(singular_values: Tensor) -> float:
    """Return the effective rank with ``p_i = sigma_i^2 / sum sigma^2``: between 1 and k; 0 for a zero matrix.

    Args:
        singular_values: (k,), in any order.
    """
    return effective_rank(relative(singular_values).square())


@register_measure("auc_90_of_sigma", heading="AUC-90 s", chart="Components that hold 90% of sigma", detailed=False)
def auc_90_of_sigma(singular_values: Tensor) -> int:
    """Return the number of leading components that hold 90% of ``sum sigma_i``: AUC-90 counts ``sum sigma_i^2``.

    Args:
        singular_values: (k,), in any order.
    """
    sigma = relative(singular_values).sort(descending=True).values
    total = sigma.sum()
    return leading(sigma.cumsum(0) / total, 0.9) if total else 0


@register_measure("nuclear_norm", heading="nuclear", chart="Nuclear norm", format=".3g", detailed=False)
def nuclear_norm(singular_values: Tensor) -> float:
    """Return ``sum sigma_i``, in the units of the matrix: it grows with its scale and, for activations, the tokens.

    Args:
        singular_values: (k,), in any order.
    """
    return singular_values.double().sum().item()


@register_measure(
    "above_random",
    heading="above random",
    chart="Singular values of the weight above those of a random product",
    format=".1f",
    needs_rank=True,
    needs_shape=True,
    detailed=False,
)
def above_random(singular_values: Tensor, rank: int, shape: tuple[int, int]) -> int:
    """Return how many singular values of a weight ``s B A`` exceed those of a random product of its size.

    The random product has independent entries in B (d x r) and A (r x in), and entries of the same variance v as the
    weight, ``v = sum sigma_i^2 / (d in)``. Each factor's singular values end at its Marchenko-Pastur edge, for entries
    of variance 1 ``sqrt(d) + sqrt(r)`` and ``sqrt(r) + sqrt(in)``, so the product's end at or below

        sqrt(v / r) (sqrt(d) + sqrt(r)) (sqrt(r) + sqrt(in)).

    The edge of one random d x in matrix is no yardstick for a product: its energy is spread over min(d, in) directions,
    and r directions with the same energy exceed it, whatever they are. What exceeds the edge raises v as well, so the
    count is a lower bound; with r = 1 it is 0.

    Args:
        singular_values: (k,), in any order.
        rank: r.
        shape: Outputs and inputs (d, in).
    """
    d, inputs = shape
    r = min(rank, d, inputs)
    sigma = relative(singular_values)
    variance = sigma.square().sum().item() / (d * inputs)
    edge = math.sqrt(variance / r) * (math.sqrt(d) + math.sqrt(r)) * (math.sqrt(r) + math.sqrt(inputs))
    return int((sigma > edge).sum().item())
