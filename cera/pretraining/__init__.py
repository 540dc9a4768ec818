"""Pre-trains a small base model from text that is generated on the spot: the scale model of the studies."""

from cera.extras import require

require("cera.pretraining", "train")
