"""What a trained adapter is judged by."""

from cera.evaluation import answers
from cera.evaluation.generation import generate
from cera.evaluation.pass_at_k import pass_at_k

__all__ = ["answers", "generate", "pass_at_k"]
