"""A run directory: its files, checkpoints, loggers and environment, and reading a finished run.

Example:
    >>> from cera.runs.finished import FinishedRun
    >>> run = FinishedRun.read("runs/smol_cera")
    >>> run.curve("val/perplexity")
    {0: 12.1, 50: 3.4, 100: 3.1}
"""
