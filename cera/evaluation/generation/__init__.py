"""Batched generation: the sampling settings, and the backends that answer prompts."""

from cera.evaluation.generation.backend import (
    Backend,
    Sample,
    Sampling,
    TransformersBackend,
    check_lengths,
)

__all__ = ["Backend", "Sample", "Sampling", "TransformersBackend", "check_lengths"]
