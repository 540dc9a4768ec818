"""The non-linearities of a CeRA branch (paper Section 3.1; ablated in Table 3).

Every name in ``ACTIVATIONS`` or in transformers' ``ACT2FN`` can stand in a configuration. A further activation is one
line, here or in code of your own, before the model is made::

    from cera.adapters import ACTIVATIONS

    ACTIVATIONS["softsign"] = nn.Softsign
"""

import difflib
from collections.abc import Callable

from torch import nn
from transformers.activations import ACT2FN

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,  # the paper's choice
    "relu": nn.ReLU,  # Table 3: zeroes half of the latent, costs 0.03 PPL
    "identity": nn.Identity,  # Table 3: the linear branch, which is LoRA in another notation
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}
"""Name in a configuration -> constructor. These take precedence over transformers' activations of the same names."""


def make_activation(name: str) -> nn.Module:
    """Return a new activation module.

    Args:
        name: A key of ``ACTIVATIONS`` or of transformers' ``ACT2FN``. An activation that does not map 0 to 0, such as
            ``sigmoid``, adds a constant to the output once ``W_down`` is trained.

    Raises:
        ValueError: There is no activation of that name, or it has parameters, which no adapter file would hold.
    """
    if name in ACTIVATIONS:
        activation = ACTIVATIONS[name]()
    elif name in ACT2FN:
        activation = ACT2FN[name]
    else:
        known = sorted({*ACTIVATIONS, *ACT2FN})
        near = difflib.get_close_matches(name, known)
        suggestion = f"Did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"There is no activation {name!r}. {suggestion}Known are {', '.join(known)}.")
    if any(True for _ in activation.parameters()):
        raise ValueError(f"The activation {name!r} has parameters of its own, which adapter files do not hold.")
    return activation
