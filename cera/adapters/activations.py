"""The non-linearities of a CeRA branch (paper Section 3.1; ablated in Table 3).

Every name in ``ACTIVATIONS`` or in transformers' ``ACT2FN`` can stand in a configuration. A further activation is one
line, here or in code of your own, before the model is made::

    from cera.adapters import ACTIVATIONS

    ACTIVATIONS["softsign"] = nn.Softsign

It may have parameters, such as ``nn.PReLU``: each adapted module has its own, trained and saved with the adapter.
"""

import difflib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN


class LearnedMix(nn.Module):
    """``z + gamma (silu(z) - z)`` with a trained scalar gamma: between the identity (gamma 0) and SiLU (gamma 1).

    From the CeRA authors' code, where each adapted module has a gamma. It starts at 0 here, where CeRA is a LoRA
    exactly; what theirs starts at is not public.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        """Return the mix, in the shape and dtype of ``z``."""
        return learned_mix(z, self.gamma)


def learned_mix(z: Tensor, gamma: Tensor) -> Tensor:
    """Return ``z + gamma (silu(z) - z)``, in the shape and dtype of ``z``; ``gamma`` broadcasts to it."""
    return z + gamma.to(z.dtype) * (F.silu(z) - z)


class Sine(nn.Module):
    """``sin(z)``: the idea of Sine-LoRA (Ji et al., arXiv 2403.19243) on the latent.

    They apply ``sin(omega B A)`` to the entries of a weight, with frequencies that mean nothing for a latent. Here
    omega is 1, since ``sin(omega W_up x)`` is the sine of a ``W_up`` that is omega times as large:
    ``CeraConfig.calibration_std`` with ``init="calibrated"`` chooses it. Where ``z`` is small, CeRA is then a LoRA.
    """

    def forward(self, z: Tensor) -> Tensor:
        """Return ``sin(z)``, in the shape and dtype of ``z``."""
        return z.sin()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,  # the paper's choice
    "relu": nn.ReLU,  # Table 3: zeroes half of the latent, costs 0.03 PPL
    "identity": nn.Identity,  # Table 3: the linear branch, which is LoRA in another notation
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "learned_mix": LearnedMix,
    "sine": Sine,
}
"""Name in a configuration -> constructor. These take precedence over transformers' activations of the same names."""

ELEMENTWISE = (nn.SiLU, nn.ReLU, nn.Identity, nn.GELU, nn.Tanh, LearnedMix, Sine)
"""Types known to map each element alone, so that several adapters' latents can be mapped as one tensor."""


def make_activation(name: str) -> nn.Module:
    """Return a new activation module.

    Args:
        name: A key of ``ACTIVATIONS`` or of transformers' ``ACT2FN``. An activation that does not map 0 to 0, such as
            ``sigmoid``, adds a constant to the output once ``W_down`` is trained.

    Raises:
        ValueError: There is no activation of that name, or it is one of transformers that has parameters.
    """
    if name in ACTIVATIONS:
        activation = ACTIVATIONS[name]()
    elif name in ACT2FN:
        activation = ACT2FN[name]
        if any(True for _ in activation.parameters()):
            raise ValueError(f"The activation {name!r} has parameters: add it to ACTIVATIONS to train them.")
    else:
        known = sorted({*ACTIVATIONS, *ACT2FN})
        near = difflib.get_close_matches(name, known)
        suggestion = f"Did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"There is no activation {name!r}. {suggestion}Known are {', '.join(known)}.")
    return activation
