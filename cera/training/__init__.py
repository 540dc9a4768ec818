"""Training an adapter on a frozen model: the LightningModule, DeepSpeed, AdaLoRA's schedule, and throughput."""

from cera.extras import require

require("cera.training", "train")

from cera.training.deepspeed import DeepSpeed
from cera.training.module import CausalLM
from cera.training.perplexity import Perplexity

__all__ = ["CausalLM", "DeepSpeed", "Perplexity"]
