"""Batched generation: the sampling settings, and the backends that generate answers to prompts.

Example:
    >>> backend = TransformersBackend(model, tokenizer, batch_size=16)
    >>> for position, samples in backend.generate(["The capital of France is"], ["france"], Sampling(max_new_tokens=8)):
    ...     print(samples[0].text)

A single prompt is easier with ``cera.models.generate``.
"""

from cera.evaluation.generation.backend import Backend, Sample
from cera.evaluation.generation.model_server import ModelServer, ServerError
from cera.evaluation.generation.sampling import InverseCDF, Sampling, uniforms
from cera.evaluation.generation.served_backend import ServedBackend
from cera.evaluation.generation.transformers_backend import TransformersBackend, check_lengths

__all__ = [
    "Backend",
    "InverseCDF",
    "ModelServer",
    "Sample",
    "Sampling",
    "ServedBackend",
    "ServerError",
    "TransformersBackend",
    "check_lengths",
    "uniforms",
]
