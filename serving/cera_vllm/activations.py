"""The non-linearities between shrink and expand, by the code that a slot holds."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sine": torch.sin,
}
"""Activations without parameters. Each maps 0 to 0, so that padded ranks and absent slices add nothing."""
CODES = {name: code for code, name in enumerate(("identity", *FUNCTIONS, "learned_mix"))}
"""Name in ``adapter_config.json`` -> code; 0 is the identity, which LoRA has."""
IDENTITY = CODES["identity"]
LEARNED_MIX = CODES["learned_mix"]
BY_CODE = {CODES[name]: function for name, function in FUNCTIONS.items()}


def learned_mix(z: Tensor, gamma: Tensor) -> Tensor:
    """Return ``z + gamma (silu(z) - z)`` for a pre-activation (..., r) and a gamma that broadcasts to it."""
    return z + gamma.to(z.dtype) * (F.silu(z) - z)


def activate(code: int, z: Tensor, gamma: Tensor) -> Tensor:
    """Return the latent (..., r) of a pre-activation of one adapter.

    Args:
        code: The adapter's code in ``CODES``.
        z: Pre-activation, (..., r).
        gamma: The scalar of the learned mix; unused by other activations.
    """
    if code == IDENTITY:
        return z
    return learned_mix(z, gamma) if code == LEARNED_MIX else BY_CODE[code](z)


def activate_by_token(codes: Tensor, z: Tensor, gammas: Tensor) -> Tensor:
    """Return the latents of tokens whose adapters differ, without a branch that a CUDA graph would freeze.

    Args:
        codes: Each token's code, (tokens,).
        z: Pre-activations, (slices, tokens, r).
        gammas: The scalars of the learned mix, (slices, tokens).
    """
    codes = codes[None, :, None]
    latent = torch.where(codes == LEARNED_MIX, learned_mix(z, gammas[..., None]), z)
    for code, function in BY_CODE.items():
        latent = torch.where(codes == code, function(z), latent)
    return latent
