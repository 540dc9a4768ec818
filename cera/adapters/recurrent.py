"""The recurrent latent of the CeRA authors' code: a small residual network on the latent, with shared weights."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = torch.finfo(torch.float32).eps
"""Added to the mean square, in every precision: what ``torch.nn.RMSNorm`` adds for fp32 weights, as theirs are."""


class RecurrentLatent(nn.Module):
    """Maps a pre-activation to the latent by an activation, followed by residual steps with shared weights.

    ``h = act(z)``, then ``steps`` times ``h = h + outer(silu(inner(RMSNorm(h)))) / steps``. ``RMSNorm`` has no weight;
    ``inner`` and ``outer`` are (r, r), without bias. ``outer`` starts at zero, where the latent is that of ``act``
    alone; ``inner`` starts as LoRA's A. They add ``2 r^2`` parameters to each adapted module.

    Args:
        activation: The activation ``act``; the authors' code allows the identity only.
        r: Width of the latent.
        steps: Number of steps, 1 or more.
    """

    def __init__(self, activation: nn.Module, r: int, steps: int) -> None:
        super().__init__()
        self.activation = activation
        self.steps = steps
        self.inner = nn.Parameter(torch.empty(r, r))
        self.outer = nn.Parameter(torch.zeros(r, r))
        nn.init.kaiming_uniform_(self.inner, a=math.sqrt(5))

    def forward(self, z: Tensor) -> Tensor:
        """Return the latent (..., r) of a pre-activation (..., r), in its dtype."""
        latent = self.activation(z)
        inner, outer = self.inner.to(z.dtype), self.outer.to(z.dtype)
        for _ in range(self.steps):
            hidden = F.silu(F.linear(F.rms_norm(latent, latent.shape[-1:], eps=EPSILON), inner))
            latent = latent + F.linear(hidden, outer) / self.steps
        return latent
