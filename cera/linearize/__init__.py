"""The best linear stand-in for a trained CeRA adapter, and the share of its update that a linear map keeps."""

from cera.linearize.fit import Linearization, LinearizedLayer, can_linearize, least_squares, linearize

__all__ = ["Linearization", "LinearizedLayer", "can_linearize", "least_squares", "linearize"]
