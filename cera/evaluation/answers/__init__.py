"""The final answers of worked solutions, and whether they are right."""

from cera.evaluation.answers.correctness import is_correct
from cera.evaluation.answers.extraction import Extraction, extract

__all__ = ["Extraction", "extract", "is_correct"]
