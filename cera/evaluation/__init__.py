"""What a trained adapter is judged by."""

from cera.evaluation.generation import generate
from cera.evaluation.perplexity import Perplexity

__all__ = ["Perplexity", "generate"]
