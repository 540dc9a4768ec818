"""What a trained adapter is judged by."""

from cera.evaluation import answers
from cera.evaluation.generation import generate
from cera.evaluation.pass_at_k import pass_at_k
from cera.evaluation.perplexity import Perplexity

__all__ = ["Perplexity", "answers", "generate", "pass_at_k"]
