"""Replaces a trained CeRA adapter by the best LoRA, and measures how much of its update a linear map reproduces.

linearization = cera.linearize(model, batches)
linearization.held_out_share  # share of the update's energy on held-out data
linearization.save("my-lora")  # a plain LoRA adapter, which can be merged
"""

from cera.linearize.adapter import Linearization, LinearizedLayer
from cera.linearize.fit import can_linearize, linearize
from cera.linearize.least_squares import least_squares

__all__ = ["Linearization", "LinearizedLayer", "can_linearize", "least_squares", "linearize"]
