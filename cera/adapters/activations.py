"""The non-linearities a CeRA branch can use (paper Section 3.1; ablated in Table 3)."""

from collections.abc import Callable

from torch import nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,  # the paper's choice
    "relu": nn.ReLU,  # Table 3: kills half of the latent, costs 0.03 PPL
    "identity": nn.Identity,  # Table 3: the linear branch, which is LoRA in another notation
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}
"""Name in a config -> constructor. All of them map 0 to 0, so that padding of zeros stays silent."""
