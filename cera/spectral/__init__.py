"""The paper's spectral measures (Sections 3.1 and 4.1): effective rank, AUC-90, and how to get a spectrum cheaply.

The matrix ``H`` of adapter activations has one row per token. The paper does not specify which activations they are;
this package offers three:

- ``update``: the adapter's output, tokens x d. The default.
- ``latent``: the input of ``W_down``, tokens x r.
- ``weight``: for linear adapters, the singular values of ``s B A`` itself, without data.

Each is measured as it is and, of the first two, minus its mean over the tokens (``cera.spectral.convention``).

``H`` is never held in memory. A stream of activations ``Z`` (tokens x k) is reduced to the k x k triangular factor
``R`` of its QR decomposition, ``Z = Q R``, which has the same singular values. ``R`` is the square root of the Gram
matrix (``Z^T Z = R^T R``) and as cheap to store and merge, but it does not square the spectrum: the eigenvalues
of a Gram matrix in fp64 lose singular values below 1e-8 of the largest, and are off by more than 1e-4 at 1e-6.
The update is ``H = s Z W_down^T``; its singular values are those of the small ``s R W_down^T``.
"""

from cera.spectral.accumulator import NonFiniteError, SpectrumAccumulator
from cera.spectral.measures import cumulative_energy, effective_rank, energy_rank, weight_spectrum

__all__ = [
    "NonFiniteError",
    "SpectrumAccumulator",
    "cumulative_energy",
    "effective_rank",
    "energy_rank",
    "weight_spectrum",
]
