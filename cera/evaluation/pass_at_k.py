"""pass@k, the probability that at least one of k samples is right (Chen et al. 2021; paper Section 3.3)."""

from typing import Any

import numpy as np


def pass_at_k(n: Any, c: Any, k: Any) -> Any:
    """The unbiased estimate ``1 - C(n - c, k) / C(n, k)`` of each problem.

    It is the sum, over the draws, of the probability that a draw is the first right one. Its terms are positive and no
    large number is formed, so it is exact to rounding for any n, small values of it too.

    Args:
        n: Samples of each problem, a number or an integer array.
        c: How many of them are right, likewise; n, c and k broadcast.
        k: How many samples may be tried.

    Returns:
        fp64 in [0, 1]: a float for three numbers, else an array.

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
    found, none_right = np.zeros(n.shape), np.ones(n.shape)
    for i in range(int(draws.max(initial=0))):
        drawn = np.where((i < draws) & (i < n), right / np.maximum(n - i, 1), 0.0)
        found, none_right = found + none_right * np.minimum(drawn, 1.0), none_right * np.maximum(1.0 - drawn, 0.0)
        if (none_right[i + 1 < draws] < 1e-17).all():  # what is left does not change a sum near 1
            break
    found = np.where(n - c < k, 1.0, np.minimum(found, 1.0))
    return float(found) if found.ndim == 0 else found


def _integers(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"pass@k: {name} must be integers, got {value!r}.")
    if (array < 0).any():
        raise ValueError(f"pass@k: {name} must be zero or more, got {array[array < 0].flat[0]}.")
    return array.astype(np.int64)
