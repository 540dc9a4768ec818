"""pass@k, the probability that at least one of k samples is right (Chen et al. 2021; paper Section 3.3)."""

from typing import Any

import numpy as np


def pass_at_k(n: Any, c: Any, k: Any) -> Any:
    """Return the unbiased estimate ``1 - C(n - c, k) / C(n, k)`` for each problem.

    It is computed as the sum over draws of the probability that a draw is the first right one. All terms are positive
    and no large number is formed, so even small values are exact to rounding, for any n.

    Args:
        n: Number of samples of each problem, a number or an integer array.
        c: Number of right samples, a number or an array; n, c and k broadcast.
        k: Number of samples that may be tried.

    Returns:
        A float in [0, 1] for three numbers, else an fp64 array.

    Raises:
        ValueError: A number is negative or no integer, k is 0 or above n, or c is above n.
    """
    n, c, k = np.broadcast_arrays(*(_integers(name, value) for name, value in (("n", n), ("c", c), ("k", k))))
    for wrong, message in (
        (c > n, "c={c} of n={n} samples cannot be right"),
        (k > n, "k={k} samples cannot be drawn from n={n}"),
        (k < 1, "k must be at least 1, got {k}"),
    ):
        if wrong.any():
            first = tuple(np.argwhere(wrong)[0])
            raise ValueError(f"pass@k: {message.format(n=n[first], c=c[first], k=k[first])}.")
    # C(n - c, k) / C(n, k) is symmetric in c and k: the smaller one is the number of draws
    draws, right = np.minimum(c, k), np.maximum(c, k)
    estimate, none_right = np.zeros(n.shape), np.ones(n.shape)
    for i in range(int(draws.max(initial=0))):
        drawn = np.where((i < draws) & (i < n), right / np.maximum(n - i, 1), 0.0)
        estimate, none_right = estimate + none_right * np.minimum(drawn, 1.0), none_right * np.maximum(1.0 - drawn, 0.0)
        if (none_right[i + 1 < draws] < 1e-17).all():  # further terms do not change a sum near 1
            break
    estimate = np.where(n - c < k, 1.0, np.minimum(estimate, 1.0))
    return float(estimate) if estimate.ndim == 0 else estimate


def _integers(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"pass@k: {name} must be integers, got {value!r}.")
    if (array < 0).any():
        raise ValueError(f"pass@k: {name} must be zero or more, got {array[array < 0].flat[0]}.")
    return array.astype(np.int64)
