"""Estimates the memory and the least time that a training run needs before it starts, without loading weights.

- ``model_states``: weights, gradients and optimizer state, by ZeRO stage.
- ``activations``: the peak of a forward and backward pass, on fake tensors.
- ``estimate``: both for a training run.
- ``roofline``: the least time of a step on a given accelerator.
- ``command``: ``cera estimate``.
"""

from cera.extras import require

require("cera.memory", "train")
