"""Estimates the memory that a training run needs before it starts, without loading weights.

- ``model_states``: weights, gradients and optimizer state, by ZeRO stage.
- ``activations``: the peak of a forward and backward pass, on fake tensors.
- ``estimate``: both for a training run.
- ``command``: ``cera estimate``.
"""

from cera.extras import require

require("cera.memory", "train")
