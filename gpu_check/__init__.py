"""Checks of a machine with a GPU, or of a CPU by the same code: ``python -m gpu_check``, or ``make gpu-check``."""
