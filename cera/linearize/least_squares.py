"""Reduced-rank regression by least squares.

[(up, down)] = least_squares(x, y)
y_hat = x @ (down[:, :r] @ up[:r]).T  # no linear map of rank r comes closer to y
"""

import torch
from torch import Tensor


def least_squares(x: Tensor, *ys: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the least-squares linear map from ``x`` to each ``y``, factored so that truncation is optimal.

    Singular values of ``x`` below ``max(x.shape) * eps`` of the largest count as zero.

    Args:
        x: (m, in) fp64, of any rank.
        ys: Each (m, q) fp64.

    Returns:
        A pair ``up`` (k, in) and ``down`` (q, k) for each ``y``, with k = min(m, q). For every rank r <= k,
        ``down[:, :r] @ up[:r]`` is the best map of that rank. The columns of ``down`` are orthonormal; the rows of
        ``up`` have no component in directions where ``x`` has none.
    """
    cutoff = max(x.shape) * torch.finfo(x.dtype).eps
    # gelsd (by SVD) is only available on the CPU. gelsy would be faster, but torch 2.13 passes it an uninitialized
    # pivot vector, so its results on rank-deficient data are often wrong (pytorch/pytorch#187411).
    solution = torch.linalg.lstsq(x.cpu(), torch.cat(ys, dim=1).cpu(), rcond=cutoff, driver="gelsd").solution
    maps = []
    for weight in solution.to(x.device).split([y.shape[1] for y in ys], dim=1):
        down = torch.linalg.svd(x @ weight, full_matrices=False).Vh.T
        maps.append(((weight @ down).T, down))
    return maps
